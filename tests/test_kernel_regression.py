"""Kernel averages of values: the regression of Nadaraya and Watson, of which barycentres are a special case."""

import pytest
import torch
from hypothesis import given

from tests.strategies import COMPACT, KERNELS, assert_close, clouds, kernels
from wgflow import KDE, Gaussian, epanechnikov, kernel_average


@given(clouds(degenerate=False), kernels((*KERNELS, *COMPACT)))
def test_the_average_of_the_samples_themselves_is_their_barycentre(c, k):
    for cloud, log_w, skip in ((c.pos, c.wp.log(), False), (c.x, None, True)):
        settings = {"kernel": k, "log_weights": log_w, "skip_self": skip}
        log_mass, barycentre = kernel_average(c.x, cloud, **settings)
        found = kernel_average(c.x, cloud, values=cloud, **settings)
        assert_close(found[0], log_mass)
        assert_close(found[1], barycentre)


@given(clouds())
def test_an_average_of_values_is_linear_in_them_with_the_weights_of_the_density(c):
    values = c.rand(*c.pos.shape[:-1], 4)
    mean = kernel_average(c.x, c.pos, values=values, kernel=Gaussian(c.h))[1]
    assert_close(mean, KDE(c.pos, Gaussian(c.h)).responsibilities(c.x) @ values)


def test_an_average_of_values_has_its_gradients_and_is_0_out_of_reach():
    g = torch.Generator().manual_seed(0)
    x, y, z, h = (
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2), (4, 2), (4, 3), (2,))
    )
    average = lambda x, y, z, h: kernel_average(
        x, y, values=z, kernel=Gaussian(h.exp()), log_weights=y[:, 0]
    )
    assert torch.autograd.gradcheck(average, (x, y, z, h))
    assert torch.autograd.gradgradcheck(average, (x, y, z, h))
    log_mass, mean = kernel_average(x + 100, y, values=z, kernel=epanechnikov(1.0))
    assert (log_mass == -torch.inf).all()
    assert (mean == 0).all()
    assert torch.autograd.grad(mean.sum(), x)[0].isfinite().all()


def test_averaged_scores_are_the_score_of_the_smoothed_density():
    """∇(k * p) = k * (p ∇log p): positives labelled with their scores. N(0, 1), by the trapezoidal rule."""
    y = torch.linspace(-12, 12, 2001, dtype=torch.float64).unsqueeze(-1)
    x, h = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1), 0.7
    log_p = -y.squeeze(-1).square() / 2
    mean = kernel_average(x, y, values=-y, kernel=Gaussian(h), log_weights=log_p)[1]
    assert_close(mean, -x / (1 + h**2))


def test_the_spread_of_neighbours_actions_is_a_kernel_average():
    """Implicit Drifting Policy 2026, Sec. 3: weights softmax(<u_i, u_j> / T) are those of a Gaussian of unit vectors.

    Alike observations have uniform weights, and E_j (a_j - a_i)² = var + (mean - a_i)².
    """
    g = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(6, 3, generator=g, dtype=torch.float64), dim=-1)
    a, T = torch.randn(6, 2, generator=g, dtype=torch.float64), 0.4

    def spread(u):
        moments = kernel_average(u, u, values=torch.cat([a, a**2], -1), kernel=Gaussian(T**0.5))[1]
        return moments[:, 2:] - 2 * a * moments[:, :2] + a**2

    weights = (u @ u.mT / T).softmax(-1)
    expected = (weights.unsqueeze(-1) * (a - a.unsqueeze(-2)) ** 2).sum(-2)
    assert_close(spread(u), expected)
    alike = u[:1].expand(6, 3)
    assert_close(spread(alike), a.var(0, unbiased=False) + (a.mean(0) - a) ** 2)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("values are", lambda y: kernel_average(y, y, values=y[:, 0], kernel=Gaussian(1.0))),
        ("values are", lambda y: kernel_average(y, y, values=y[1:], kernel=Gaussian(1.0))),
        ("values are", lambda y: kernel_average(y, y, values=y.double(), kernel=Gaussian(1.0))),
        ("backend = 'gemm'", lambda y: kernel_average(y, y, values=y, kernel=Gaussian(1.0), backend="gemm")),
        ("NaN", lambda y: kernel_average(y, y, values=y / 0, kernel=Gaussian(1.0))),
    ],
)  # fmt: skip
def test_bad_values_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.ones(4, 2))
