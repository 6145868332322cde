"""Score-debiased density estimates (SD-KDE): closed forms on Gaussians, on one and on two points."""

import math

import pytest
import torch
from hypothesis import given
from torch.distributions import Normal

from tests.strategies import assert_close, clouds
from wgflow import KDE, Gaussian, Laplace

# Half a step of the score of N(0, σ²) itself, of the estimate, and of one of bandwidth h/√2; without a step
MOVED = {
    "plain": (lambda kde, sigma, h: kde, lambda s, h: h**2),
    "own score": (
        lambda kde, sigma, h: kde.debiased(),
        lambda s, h: s**2 * (1 - h**2 / (2 * (s**2 + h**2))) ** 2 + h**2 - s**2,
    ),
    "true score": (
        lambda kde, s, h: KDE(kde.samples * (1 - h**2 / (2 * s**2)), Gaussian(h), kde.weights),
        lambda s, h: h**4 / (4 * s**2),
    ),
    "narrow score": (
        lambda kde, s, h: KDE(
            kde.samples + h**2 / 2 * KDE(kde.samples, Gaussian(h / 2**0.5), kde.weights).score(kde.samples),
            Gaussian(h), kde.weights,
        ),
        lambda s, h: 4 * s**6 / (2 * s**2 + h**2) ** 2 + h**2 - s**2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize(("sigma", "h"), [(1.0, 0.2), (1.0, 0.4), (0.5, 0.3)])
def test_the_estimate_of_a_gaussian_is_a_gaussian_whose_variance_errs_as_derived(name, sigma, h):
    y = (
        sigma * torch.linspace(-9, 9, 700, dtype=torch.float64)[:, None]
    )  # the law itself, by quadrature
    kde = KDE(y, Gaussian(h), (-0.5 * (y[:, 0] / sigma) ** 2).exp())
    estimate, excess = MOVED[name]
    x = sigma * torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    variance = torch.tensor(sigma**2 + excess(sigma, h), dtype=torch.float64)
    law = Normal(torch.zeros_like(variance), variance.sqrt())
    assert_close(
        estimate(kde, sigma, h).log_density(x), law.log_prob(x[:, 0]), rtol=1e-8, atol=1e-8
    )


def test_the_bias_falls_from_second_to_fourth_order():
    excess = MOVED["own score"][1]
    assert excess(1.0, 0.2) == pytest.approx(0.0019083, abs=1e-7)
    assert excess(1.0, 0.01) == pytest.approx(5 / 4 * 0.01**4, rel=1e-3)


@given(c=clouds())
def test_the_step_is_half_of_h2_times_the_score(c):
    h = c.h * (1 + torch.arange(c.pos.shape[-1], dtype=torch.float64))  # a length per dimension
    kde = KDE(c.pos, Gaussian(h), c.wp)
    assert_close(kde.debiased().samples, c.pos + 0.5 * h**2 * kde.score(c.pos))
    assert torch.equal(kde.debiased().weights, c.wp)


@pytest.mark.parametrize("h", [0.3, 2.0])
def test_two_points_move_towards_each_other(h):
    a, k = 1.5, math.exp(-2 * 1.5**2 / h**2)
    y = torch.tensor([[-a], [a]], dtype=torch.float64)
    assert_close(KDE(y, Gaussian(h)).debiased().samples, y * (1 - k / (1 + k)))
    assert torch.equal(KDE(y[:1], Gaussian(h)).debiased().samples, y[:1])


def test_only_gaussian_estimates_are_debiased():
    with pytest.raises(ValueError, match="the kernel is Laplace"):
        KDE(torch.zeros(2, 1), Laplace(1.0)).debiased()
