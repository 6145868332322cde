"""Proposition 1: the published constants hold, the sharp ones are least, the localised bound is never vacuous."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wgflow import (
    Gaussian,
    Laplace,
    Matern,
    biweight,
    bounds,
    drifting_field,
    epanechnikov,
    flat,
    kernel_average,
    mean_shift,
    top_k_weights,
    total_variation,
)
from wgflow.kernels import Riesz


@st.composite
def measures(draw):
    """Points x, shared support, two weightings of it, negatives, and a kernel; some weightings nearly point masses."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    d, m = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    sharp = draw(st.sampled_from([1.0, 5.0, 20.0]))
    points = torch.randn(m, d, generator=g, dtype=torch.float64)
    a, b = (
        (sharp * torch.randn(m, generator=g, dtype=torch.float64)).softmax(-1) for _ in range(2)
    )
    x, neg = (torch.randn(4, d, generator=g, dtype=torch.float64) for _ in range(2))
    neg = neg + draw(st.sampled_from([0.0, 3.0, 100.0]))  # also outside the hull of x and points
    return (
        x,
        points,
        a,
        b,
        neg,
        draw(st.sampled_from([Gaussian, Laplace]))(draw(st.floats(0.5, 5.0))),
    )


def change_of_loss(case):
    x, points, a, b, neg, kernel = case
    loss = [bounds.drift_loss(x, points, w, neg, kernel=kernel) for w in (a, b)]
    return (loss[0] - loss[1]).abs().item()


@given(measures())
def test_the_global_constants_bound_drift_and_loss(case):
    x, points, a, b, neg, kernel = case
    diam, tv = bounds.diameter(x, points, neg), total_variation(a, b).item()
    V, W = (drifting_field(x, points, neg, kernel=kernel, pos_weights=w) for w in (a, b))
    assert (V - W).norm(dim=-1).max().item() <= bounds.drift_constant(kernel, diam) * tv + 1e-9
    assert change_of_loss(case) <= bounds.loss_constant(kernel, diam) * tv + 1e-9


@given(measures())
def test_the_published_constants_hold_and_are_at_least_twice_and_four_times_the_sharp_ones(case):
    """Eq. 29 with L_V = (κ + κ²) diam, Eq. 32 with C = 4 M L_V; κ >= 1."""
    x, points, a, b, neg, kernel = case
    diam, tv = bounds.diameter(x, points, neg), total_variation(a, b).item()
    V, W = (mean_shift(x, points, kernel=kernel, weights=w) for w in (a, b))
    L_V = bounds.published_drift_constant(kernel, diam)
    assert (V - W).norm(dim=-1).max().item() <= L_V * tv + 1e-9
    assert change_of_loss(case) <= 4 * diam * (V - W).norm(dim=-1).mean().item() + 1e-9
    assert change_of_loss(case) <= bounds.published_loss_constant(kernel, diam) * tv + 1e-9
    assert 2 * bounds.drift_constant(kernel, diam) <= L_V * (1 + 1e-12)
    published = bounds.published_loss_constant(kernel, diam)
    assert 4 * bounds.loss_constant(kernel, diam) <= published * (1 + 1e-12)


@given(measures())
def test_a_bound_by_the_masses_at_a_point_is_linear_in_them_too(case):
    """|V⁺_p - V⁺_q| <= K_max diam TV / max(D(p), D(q)), below the quotient bound of Eq. 29's proof at every x."""
    x, points, a, b, _, kernel = case
    diam, tv = bounds.diameter(x, points), total_variation(a, b)
    V, W = (mean_shift(x, points, kernel=kernel, weights=w) for w in (a, b))
    masses = [
        kernel_average(x, points, kernel=kernel, log_weights=w.log())[0].exp() for w in (a, b)
    ]  # [N]; K_max = k(0) = 1
    largest, least = torch.maximum(*masses), torch.minimum(*masses)
    sharp = diam * tv / largest
    assert ((V - W).norm(dim=-1) <= sharp + 1e-9).all()
    assert (sharp <= diam * tv * (1 / least + 1 / least**2)).all()


@given(measures())
def test_the_localised_bound_holds(case):
    x, points, a, b, neg, kernel = case
    diam = bounds.diameter(x, points)
    bound = bounds.localised_bound(x, points, a, b, neg, kernel=kernel).item()
    assert change_of_loss(case) <= bound * (1 + 1e-9) + 1e-9
    local = bounds.localised_variation(x, points, a, b, kernel=kernel).mean().item()
    assert local <= bounds.kernel_ratio(kernel, diam) * total_variation(a, b).item() + 1e-9


@given(measures(), st.sampled_from([flat, epanechnikov, biweight]), st.floats(0.1, 3.0))
def test_the_localised_bound_holds_out_of_reach_of_a_compact_kernel(case, make, h):
    x, points, a, b, neg, _ = case
    kernel = make(h)
    bound = bounds.localised_bound(x, points, a, b, neg, kernel=kernel).item()
    assert change_of_loss((x, points, a, b, neg, kernel)) <= bound * (1 + 1e-9) + 1e-9
    local = bounds.localised_variation(x, points, a, b, kernel=kernel)
    assert ((local >= 0) & (local <= 1 + 1e-12)).all()


def test_the_localised_bound_is_attained_with_far_negatives():
    """Points {0, 1} read at 1, negatives at -R: the bound's ratio to the change of loss tends to 1 as R grows."""
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    a, b = points.new_tensor([1.0, 0.0]), points.new_tensor([0.0, 1.0])
    neg, x = points.new_tensor([[-1e4]]), points[1:]
    case = x, points, a, b, neg, Gaussian(1.0)
    bound = bounds.localised_bound(x, points, a, b, neg, kernel=Gaussian(1.0)).item()
    assert change_of_loss(case) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("kernel", [Riesz(1.0), flat(0.5), epanechnikov(0.5)])
def test_the_constant_of_a_kernel_that_is_singular_or_out_of_reach_is_infinite(kernel):
    """Without a positive lower and a finite upper bound of k no multiple of TV bounds the drift."""
    assert bounds.kernel_ratio(kernel, 1.0) == math.inf


@pytest.mark.parametrize("kernel", [Gaussian(0.8), Laplace(1.0), Matern(0.7, 1.5)])
def test_a_search_finds_the_sharp_constants_and_nothing_beyond(kernel):
    """Random pairs of measures on {0, diam}, read at its ends: the worst ratio is within 1 % of 1, none above."""
    g, diam, n = torch.Generator().manual_seed(0), 2.0, 60_000
    points = torch.tensor([[0.0], [diam]], dtype=torch.float64)
    a, b = (
        (30 * torch.rand(n, 1, generator=g, dtype=torch.float64) - 15).sigmoid() for _ in range(2)
    )  # mass of one end, from 3e-7 to 1 - 3e-7
    a, b = (torch.cat([1 - w, w], -1) for w in (a, b))
    x = points[torch.randint(2, (n, 1), generator=g)]  # [n, 1, 1]
    V, W = (drifting_field(x, points, points[1:], kernel=kernel, pos_weights=w) for w in (a, b))
    tv = total_variation(a, b)
    drift = (V - W).norm(dim=-1).squeeze(-1) / (bounds.drift_constant(kernel, diam) * tv)
    loss = (V.square() - W.square()).sum((-2, -1)).abs() / (bounds.loss_constant(kernel, diam) * tv)
    local = bounds.localised_variation(x, points.expand(n, 2, 1), a, b, kernel=kernel).squeeze(-1)
    localised = (V - W).norm(dim=-1).squeeze(-1) / (diam * local)
    apart = tv > 1e-6  # nearer to each other, rounding alone decides the ratio
    for ratio in (drift[apart], loss[apart], localised[apart]):
        assert 0.99 < ratio.max().item() < 1 + 1e-6
    published = bounds.published_loss_constant(kernel, diam)
    assert ((V.square() - W.square()).sum((-2, -1)).abs() <= published * tv + 1e-9).all()


def test_at_the_papers_own_setting_the_global_constants_are_vacuous_and_the_localised_bound_is_not():
    """h = .05, a 25-D chunk in [-1, 1]^25, diameter 10: k_min = exp(-20000)."""
    assert bounds.loss_constant(Gaussian(0.05), 10.0) == math.inf
    g = torch.Generator().manual_seed(0)
    x, points = (2 * torch.rand(n, 25, generator=g, dtype=torch.float64) - 1 for n in (20, 16))
    a, b = (torch.randn(16, generator=g, dtype=torch.float64).softmax(-1) for _ in range(2))
    bound = bounds.localised_bound(x, points, a, b, x, kernel=Gaussian(0.05))
    assert 0 <= bound.item() <= 2 * 10.0**2


def test_the_top_k_field_converges_at_the_rate_of_one_over_root_k():
    """Top-K of N candidates against the level set of the same mass: the error falls as K^-1/2, three decades."""
    g = torch.Generator().manual_seed(0)
    kernel, x = Gaussian(0.5), torch.tensor([[0.3]], dtype=torch.float64)
    value = lambda y: -((y[..., 0] - 0.4) ** 2)
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64).unsqueeze(-1)
    exact = drifting_field(
        x, grid, x, kernel=kernel, pos_weights=top_k_weights(value(grid), k=len(grid) // 4)
    )
    errors = []
    for n, runs in ((32, 400), (320, 200), (3200, 100), (32_000, 40)):
        y = 2 * torch.rand(runs, n, 1, generator=g, dtype=torch.float64) - 1
        V = drifting_field(x, y, x, kernel=kernel, pos_weights=top_k_weights(value(y), k=n // 4))
        errors.append((V - exact).square().mean().sqrt().item())
    slope = (math.log(errors[-1]) - math.log(errors[0])) / math.log(1000)
    assert slope == pytest.approx(-0.5, abs=0.06)
