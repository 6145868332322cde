"""The Sinkhorn field: closed forms, limits, the functionals it descends, and where it comes to rest."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.closed_forms import quantiles
from tests.strategies import assert_close, clouds
from wgflow import Gaussian, Sinkhorn, drifting_field, sinkhorn_field
from wgflow.distances import sq_distances
from wgflow.transport import Between, cost


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(c=clouds(), epsilon=st.floats(0.1, 10.0))
def test_no_round_of_sinkhorn_is_eq_3(c, epsilon):
    V = sinkhorn_field(
        c.x, c.pos, c.neg, epsilon=epsilon, iterations=0, pos_weights=c.wp, neg_weights=c.wn
    )
    k = Gaussian(math.sqrt(epsilon))
    expected = drifting_field(c.x, c.pos, c.neg, kernel=k, pos_weights=c.wp, neg_weights=c.wn)
    assert_close(V, expected)


@pytest.mark.parametrize("dim", [1, 3])
def test_two_points_and_two_positives_have_their_closed_form(dim):
    """t and s are the shares that stay: σ(<x2-x1, y2-y1> / 2ε) and σ(|x2-x1|² / 2ε)."""
    x, y, epsilon = randn(2, dim), randn(2, dim, seed=1), 0.8
    t = torch.sigmoid((x[1] - x[0]) @ (y[1] - y[0]) / (2 * epsilon))
    s = torch.sigmoid((x[1] - x[0]).square().sum() / (2 * epsilon))
    expected = t * y + (1 - t) * y.flip(0) - s * x - (1 - s) * x.flip(0)
    assert_close(sinkhorn_field(x, y, epsilon=epsilon, iterations=200), expected)


@pytest.mark.parametrize("epsilon", [0.4, 1.0, 4.0])
def test_a_translation_is_undone_at_every_regularisation(epsilon):
    x, by = randn(6, 3), randn(3, seed=1)
    V = sinkhorn_field(x, x + by, epsilon=epsilon, iterations=2000)
    assert_close(V, by.expand_as(x), atol=1e-6)
    eq_3 = drifting_field(x, x + by, x, kernel=Gaussian(epsilon**0.5))
    assert (eq_3 - by).abs().max() > 0.05


def gaussian_slope(v, target, epsilon, rounds):
    """The slope of the barycentric projection from N(0, v) to N(0, target) after some rounds, or all (None)."""
    if rounds is None:
        return (math.sqrt(4 * v * target + epsilon**2) - epsilon) / (2 * v)
    e, eta = 1 / epsilon, 0.0
    for _ in range(rounds):
        xi = -e * (1 / target + eta) / (e + 1 / target + eta)
        eta = -e * (1 / v + xi) / (e + 1 / v + xi)
    return e / (e + 1 / target + eta)


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, None])
def test_between_gaussians_the_field_has_the_slope_of_its_rounds(rounds):
    """Quantiles err by 1/n, which twice the number of them shows and removes."""
    v, target, epsilon = 0.5, 1.6, 1.0

    def slope(n):
        x, y = (
            quantiles((torch.zeros(1).double(), torch.tensor([[s]]).double()), n)
            for s in (v, target)
        )
        x, y = (t * (s / t.square().mean()).sqrt() for t, s in ((x, v), (y, target)))
        V = sinkhorn_field(x, y, epsilon=epsilon, iterations=30 if rounds is None else rounds)
        near = x.abs() < 0.7
        return ((V * x)[near].sum() / (x * x)[near].sum()).item()

    expected = gaussian_slope(v, target, epsilon, rounds) - gaussian_slope(v, v, epsilon, rounds)
    assert 2 * slope(200) - slope(100) == pytest.approx(expected, rel=1e-3)


def test_the_limits_are_the_optimal_assignment_and_the_difference_of_means():
    x, y = randn(5, 2), 3 * randn(5, 2, seed=1)
    _, to = linear_sum_assignment(torch.cdist(x, y).square().numpy())
    sharp = sinkhorn_field(x, y, epsilon=0.02, iterations=3000)
    assert_close(sharp, y[to] - x, atol=1e-3)
    errors = [
        (sinkhorn_field(x, y, epsilon=e) - (y.mean(0) - x.mean(0))).abs().max().item()
        for e in (1e3, 1e4)
    ]
    assert errors[0] == pytest.approx(10 * errors[1], rel=0.02)  # of order 1/ε


@given(c=clouds(degenerate=False), share=st.floats(0.1, 1.0))
def test_the_converged_field_is_the_velocity_of_the_sinkhorn_divergence(c, share):
    """Plain rounds here, Newton's method there. Columns are then exact, so the field moves mean to mean.

    Rounds take of the order of exp(max C / ε) to converge, so ε is a share of the largest cost C.
    """
    both = torch.cat([c.x, c.pos], -2)
    epsilon = share * sq_distances(both, both).max().item() / 2
    V = sinkhorn_field(
        c.x, c.pos, epsilon=epsilon, iterations=100_000, tolerance=1e-9, pos_weights=c.wp
    )
    assert_close(V, Sinkhorn(c.pos, epsilon**0.5, c.wp).velocity(c.x), rtol=1e-5, atol=1e-5)
    w = (c.wp / c.wp.sum(-1, keepdim=True)).unsqueeze(-1)
    assert_close(V.mean(-2), (w * c.pos).sum(-2) - c.x.mean(-2), atol=1e-5)


def test_with_a_second_batch_the_field_is_the_gradient_of_a_difference_of_transports():
    """-N ∇ [OT(x, pos) - OT(x, neg)] at fixed neg, without a factor 1/2 (W-Flow)."""
    x, pos, neg, epsilon = (
        randn(4, 2).requires_grad_(),
        randn(5, 2, seed=1),
        randn(3, 2, seed=2),
        0.7,
    )

    def transport(y):
        a, b = (torch.full((len(t),), 1 / len(t), dtype=torch.float64) for t in (x, y))
        return cost(sq_distances(x, y) / 2, Between(a, b, epsilon))

    (gradient,) = torch.autograd.grad(transport(pos) - transport(neg), x)
    V = sinkhorn_field(x.detach(), pos, neg, epsilon=epsilon, iterations=500)
    assert_close(V, -len(x) * gradient, atol=1e-8)


@given(c=clouds(), iterations=st.integers(0, 5))
def test_exchanging_positives_and_a_second_batch_turns_the_field_around(c, iterations):
    """So E V = 0 at every point if both batches come from one law: W-Flow's debiasing."""
    V, back = (
        sinkhorn_field(c.x, a, b, epsilon=c.h**2, iterations=iterations)
        for a, b in ((c.pos, c.neg), (c.neg, c.pos))
    )
    assert_close(V, -back)


@given(c=clouds(degenerate=False), iterations=st.integers(0, 5))
def test_one_positive_draws_every_group_together(c, iterations):
    """V = y - T(x) with T the gradient of a convex function: Σ_ij (x_i - x_j) · (V_i - V_j) < 0, as with Eq. 3."""
    y = c.pos[..., :1, :]
    V = sinkhorn_field(c.x, y, epsilon=c.h**2, iterations=iterations)
    apart, change = c.x.unsqueeze(-2) - c.x.unsqueeze(-3), V.unsqueeze(-2) - V.unsqueeze(-3)
    assert ((apart * change).sum((-3, -2, -1)) < 0).all()
    alone = c.x[..., :1, :]
    assert_close(sinkhorn_field(alone, y, epsilon=c.h**2, iterations=iterations), y - alone)


def test_a_tolerance_bounds_the_marginals_of_each_cloud_alone():
    width = torch.tensor([0.1, 1.0, 5.0]).double().view(3, 1, 1)
    x, y = randn(3, 6, 2), width * randn(3, 6, 2, seed=1)
    settings = {"epsilon": 1.0, "iterations": 5000}
    exact = sinkhorn_field(x, y, **settings)
    V = sinkhorn_field(x, y, **settings, tolerance=1e-3)
    assert 0 < (V - exact).abs().max() < 0.05
    for i in range(3):
        assert_close(V[i], sinkhorn_field(x[i], y[i], **settings, tolerance=1e-3))
    with pytest.warns(RuntimeWarning, match="more iterations"):
        sinkhorn_field(x, y, epsilon=1e-3, iterations=5, tolerance=1e-6)
