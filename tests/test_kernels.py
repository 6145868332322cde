"""Kernels are the textbook ones: scikit-learn, scipy and the formulas agree."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.gaussian_process import kernels as reference

from tests.strategies import assert_close
from wgflow import (
    Compact,
    Gaussian,
    Laplace,
    Matern,
    RationalQuadratic,
    biweight,
    epanechnikov,
    flat,
    student_t,
)

PAIRS = [
    (Gaussian, reference.RBF),
    (Laplace, lambda h: reference.Matern(h, nu=0.5)),
    (lambda h: Matern(h, 1.5), lambda h: reference.Matern(h, nu=1.5)),
    (lambda h: Matern(h, nu=2.5), lambda h: reference.Matern(h, nu=2.5)),
    (lambda h: Matern(h, nu=4.5), lambda h: reference.Matern(h, nu=4.5)),
]


def points(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, dim, generator=g, dtype=torch.float64) for n in (7, 9))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("length_scale", [0.3, 1.0, 2.5])
def test_kernels_are_those_of_scikit_learn(ours, theirs, length_scale):
    x, y = points(3)
    expected = torch.as_tensor(theirs(length_scale)(x.numpy(), y.numpy()))
    assert_close(ours(length_scale).log_pairs(x, y).exp(), expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_length_scale_per_dimension_is_that_of_scikit_learn(ours, theirs):
    (x, y), scales = points(3), np.array([0.3, 1.0, 2.5])
    expected = torch.as_tensor(theirs(scales)(x.numpy(), y.numpy()))
    assert_close(ours(scales).log_pairs(x, y).exp(), expected)
    assert_close(ours(torch.tensor(scales)).log_pairs(x, y).exp(), expected)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("length_scale", [0.3, 1.0, 2.5])
def test_the_rational_quadratic_is_that_of_scikit_learn(alpha, length_scale):
    x, y = points(3)
    expected = reference.RationalQuadratic(length_scale, alpha)(x.numpy(), y.numpy())
    found = RationalQuadratic(length_scale, alpha=alpha).log_pairs(x, y).exp()
    assert_close(found, torch.as_tensor(expected))


def test_the_rational_quadratic_tends_to_the_gaussian():
    x, y = points(2)
    limit = Gaussian(0.8).log_pairs(x, y)
    assert_close(RationalQuadratic(0.8, 1e9).log_pairs(x, y), limit, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 100])
@pytest.mark.parametrize("alpha", [1e3, 1e6, 1e9, 1e12, 1e15])
def test_the_norm_of_the_rational_quadratic_tends_to_that_of_the_gaussian(dim, alpha):
    """Γ(α - D/2) / Γ(α) = α^(-D/2) (1 + D/2 (D/2 + 1) / 2α + O(α^-2)); logarithms of Γ alone lose it to rounding."""
    d = dim / 2
    gap = RationalQuadratic(0.8, alpha).log_norm(dim) - Gaussian(0.8).log_norm(dim)
    assert gap == pytest.approx(-d * (d + 1) / (2 * alpha), abs=d**3 / alpha**2 + 1e-8)


@pytest.mark.parametrize("nu", [1.5, 8.5, 9.5, 20.5, 40.5])
def test_a_matern_kernel_is_right_at_every_distance_and_precision(nu):
    """Powers of u leave the range of floats long before the logarithm of the kernel does."""
    r = 10.0 ** torch.arange(-3, 9, dtype=torch.float64)
    kernel = Matern(1.0, nu)
    log, single = kernel.log(r.square()), kernel.log(r.square().float())
    assert single.dtype == torch.float32
    assert_close(single.double(), log, rtol=1e-4, atol=1e-6)
    x = (
        math.sqrt(2 * nu) * r[r < 200]
    )  # K_nu of scipy: its exponentially scaled form has no range to leave
    bessel = (1 - nu) * math.log(2) - math.lgamma(nu) + nu * x.log()
    expected = bessel + torch.as_tensor(special.kve(nu, x.numpy())).log() - x
    near = expected.isfinite()
    assert near.sum() >= 4
    assert_close(log[: len(x)][near], expected[near], rtol=1e-9, atol=1e-9)
    draws = kernel.noise(torch.empty(7, 200), torch.Generator().manual_seed(0))
    assert draws.isfinite().all()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_student_t_is_the_density_of_scipy(dim):
    kernel, (x, _) = student_t(0.7, nu=3.0, dim=dim), points(dim)
    expected = stats.multivariate_t(np.zeros(dim), 0.7**2 * np.eye(dim), df=3.0).logpdf(x.numpy())
    log_density = kernel.log(x.square().sum(-1)) + kernel.log_norm(dim)
    assert_close(log_density, torch.as_tensor(expected).reshape(log_density.shape))


def test_compact_kernels_are_powers_of_one_formula():
    r = torch.linspace(0, 1, 40, dtype=torch.float64)
    for power, make in ((0, flat), (1, epanechnikov), (2, biweight)):
        expected = torch.where(r < 0.7, (1 - (r / 0.7) ** 2) ** power, 0.0)
        assert_close(make(0.7).log(r**2).exp(), expected)
        assert make(0.7) == Compact(0.7, power)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("nu = 2.0; wanted 1.5", lambda: Matern(0.6, 2.0)),
        ("use Laplace", lambda: Matern(0.6, 0.5)),
        ("nearly Gaussian", lambda: Matern(0.6, 41.5)),
        ("nearly Gaussian", lambda: Matern(0.6, math.inf)),
        ("alpha = -1", lambda: RationalQuadratic(1.0, -1)),
        ("shadow", lambda: RationalQuadratic(1.0, 0.5).shadow_scale),
        ("nu = 0", lambda: student_t(1.0, nu=0, dim=2)),
        ("power = 1.5", lambda: Compact(1.0, 1.5)),
        ("length_scale = nan", lambda: Laplace(math.nan)),
    ],
)
def test_bad_parameters_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()
