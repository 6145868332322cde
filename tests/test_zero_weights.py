"""At weight 0 values and derivatives of every weighted sum are the true ones: those of a sample about to appear."""

import math

import pytest
import torch

import wgflow as wg
from tests.strategies import assert_close
from wgflow import KDE, Gaussian
from wgflow.reductions import dispatch, kernel_shift_f64, log_total


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases():
    """Functions of weights [5], of which some are 0; the clouds do not change."""
    x, pos, neg = randn(4, 2), randn(5, 2, seed=2), randn(5, 2, seed=3)
    k, weighted = Gaussian(0.8), {"kernel": Gaussian(0.8)}
    shift = lambda backend: (
        lambda w: kernel_shift_f64(x, pos, kernel=k, weights=w, backend=backend)[1]
    )
    return {
        "mean shift": lambda w: wg.mean_shift(x, pos, weights=w, **weighted),
        "mean shift, Laplace": lambda w: wg.mean_shift(x, pos, kernel=wg.Laplace(0.8), weights=w),
        "mean shift without itself": lambda w: wg.mean_shift(
            pos, pos, weights=w, skip_self=True, **weighted
        ),
        "length scale per dimension": lambda w: wg.mean_shift(
            x, pos, kernel=Gaussian(torch.tensor([0.5, 0.9])), weights=w
        ),
        "dense": shift("dense"),
        "blocked": shift("blocked"),
        "gemm": shift("gemm"),
        "log masses": lambda w: kernel_shift_f64(x, pos, kernel=k, weights=w)[0],
        "with log weights too": lambda w: kernel_shift_f64(
            x, pos, kernel=k, weights=w, log_weights=neg[:, 0]
        )[1],
        "log total": lambda w: log_total(pos, w),
        "drifting field": lambda w: wg.drifting_field(x, pos, neg, pos_weights=w, **weighted),
        "drifting field, negatives": lambda w: wg.drifting_field(
            pos, x, neg, neg_weights=w, skip_self=True, divergence=wg.ForwardKL(), **weighted
        ),
        "likelihood field": lambda w: wg.likelihood_field(x, pos, pos_weights=w, **weighted),
        "energy field": lambda w: wg.energy_field(x, pos, neg, pos_weights=w, neg_weights=w),
        "MMD field": lambda w: wg.mmd_field(x, pos, pos_weights=w, **weighted),
        "relative field": lambda w: wg.DriftingField(k).relative()(x, pos, pos_weights=w),
        "published field": lambda w: wg.published_field(x, pos, pos_weights=w),
        "Sinkhorn field": lambda w: wg.sinkhorn_field(
            x, pos, neg, epsilon=0.5, pos_weights=w, neg_weights=w
        ),
        "conservative field": lambda w: wg.conservative_field(
            x, pos, neg, pos_weights=w, neg_weights=w, **weighted
        ),
        "log density": lambda w: KDE(pos, k, w).log_density(x),
        "score": lambda w: KDE(pos, wg.Matern(0.8), w).score(x),
        "responsibilities": lambda w: KDE(pos, k, w).responsibilities(x),
    }


# The backends have no second derivative; the likelihood field is linear in its weights.
FIRST_ONLY = ("blocked", "gemm", "likelihood field")
WEIGHTS = (0.3, 0.0, 0.5, 0.0, 0.2)


def one_sided(function, at, direction, step=1e-5):
    """Derivative of `function` along a direction that keeps weights positive, to second order in the step."""
    f0, f1, f2 = (function(at + t * step * direction) for t in (0, 1, 2))
    return (-3 * f0 + 4 * f1 - f2) / (2 * step)


@pytest.mark.parametrize("name", cases())
def test_first_derivatives_are_one_sided_differences(name):
    function = cases()[name]
    w = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    up = torch.randn(
        function(w).shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    (found,) = torch.autograd.grad((function(w) * up).sum(), w)
    for j in range(5):
        e = torch.eye(5, dtype=torch.float64)[j]
        expected = one_sided(lambda w: (function(w) * up).sum(), w.detach(), e)
        assert_close(found[j], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in cases() if n not in FIRST_ONLY])
def test_second_derivatives_are_one_sided_differences(name):
    function = cases()[name]

    def gradient(w, create_graph=False):
        w = w if create_graph else w.detach().requires_grad_()
        up = torch.linspace(-1, 1, function(w).numel(), dtype=torch.float64)
        value = (function(w).flatten() * up).sum()
        return torch.autograd.grad(value, w, create_graph=create_graph)[0]

    w = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([0.2, 0.7, -0.3, 0.4, 0.1], dtype=torch.float64)
    (found,) = torch.autograd.grad((gradient(w, create_graph=True) * direction).sum(), w)
    assert_close(found, one_sided(gradient, w.detach(), direction), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_derivative_of_a_mean_shift_at_weight_0_has_a_closed_form(dtype):
    """d/dw (k1 y1 + w k2 y2) / (k1 + w k2) at w = 0 is k2/k1 (y2 - y1)."""
    w = torch.tensor([1.0, 0.0], dtype=dtype, requires_grad=True)
    x, y = torch.zeros(1, 1, dtype=dtype), torch.tensor([[1.0], [2.0]], dtype=dtype)
    (found,) = torch.autograd.grad(wg.mean_shift(x, y, kernel=Gaussian(1.0), weights=w).sum(), w)
    expected = torch.tensor([0.0, math.exp(-1.5)], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("many", [False, True])
def test_weights_of_a_softmax_that_underflow_have_finite_gradients(monkeypatch, dtype, many):
    """A sample without weight may be nearer by any number of bandwidths than those with weight."""
    if many:
        monkeypatch.setattr(dispatch, "DENSE_IS_FASTEST", ((math.inf, 0),))
    scores = torch.tensor([0.0, -2e3, -5e3, -90.0], dtype=dtype, requires_grad=True)
    x = torch.tensor([[100.0], [0.2]], dtype=dtype)
    y = torch.tensor([[0.0], [100.0], [0.1], [0.3]], dtype=dtype)
    w = scores.softmax(-1)
    assert (w == 0).any()
    V = wg.mean_shift(x, y, kernel=Gaussian(1.0), weights=w)
    (found,) = torch.autograd.grad(V.sum(), scores)
    assert found.isfinite().all()
    assert (found[1:3] == 0).all()


def test_a_sample_of_weight_0_has_no_influence_on_other_derivatives():
    x, y, w = randn(4, 2), randn(5, 2, seed=2), torch.tensor(WEIGHTS, dtype=torch.float64)
    present = w > 0
    at = [t.clone().requires_grad_() for t in (x, y, w)]
    few = [t.clone().requires_grad_() for t in (x, y[present], w[present])]
    k = Gaussian(0.7)
    all_of_them, without = (
        torch.autograd.grad(wg.mean_shift(a, b, kernel=k, weights=c).square().sum(), (a, b, c))
        for a, b, c in (at, few)
    )
    assert_close(all_of_them[0], without[0])
    assert_close(all_of_them[1][present], without[1])
    assert (all_of_them[1][~present] == 0).all()
    assert_close(all_of_them[2][present], without[2])


def test_weights_without_gradient_leave_second_derivatives_in_the_points_whole():
    pos, w = randn(3, 2, seed=2), torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    field = lambda x: wg.likelihood_field(x, pos, kernel=Gaussian(0.9), pos_weights=w)
    assert torch.autograd.gradgradcheck(field, randn(2, 2).requires_grad_())
