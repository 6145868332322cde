"""Entropic transport: its definition, closed form, derivatives and invariances."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.closed_forms import quantiles
from tests.strategies import assert_close, clouds
from wgflow import Euler, Sinkhorn, flow
from wgflow.testing import gaussians


def test_sinkhorn_has_its_gaussian_closed_form():
    p, q = (
        (torch.tensor([m]).double(), torch.tensor([[v]]).double())
        for m, v in ((0.0, 1.0), (1.0, 2.0))
    )
    measured = Sinkhorn(quantiles(p, 150), blur=0.5).value(quantiles(q, 150)).item()
    exact = gaussians.sinkhorn_divergence(p, q, sigma2=0.25).item()
    assert measured == pytest.approx(exact, rel=0.02)  # what remains is the discretisation


def sinkhorn_by_iteration(x, y, w, eps, steps=2000):
    """The Sinkhorn divergence by its definition: many plain steps of Sinkhorn, and the primal cost of their plan."""

    def optimum(x, a, y, b):
        C = (x[:, None] - y[None]).square().sum(-1)
        g = torch.zeros_like(b)
        for _ in range(steps):
            f = -eps * (b.log() + (g - C) / eps).logsumexp(1)
            g = -eps * (a.log()[:, None] + (f[:, None] - C) / eps).logsumexp(0)
        pi = a[:, None] * b * ((f[:, None] + g - C) / eps).exp()
        kl = (pi * ((f[:, None] + g - C) / eps)).sum()
        return (pi * C).sum() + eps * kl

    a = torch.full((len(x),), 1 / len(x)).to(x)
    self_terms = optimum(x, a, x, a) + optimum(y, w, y, w)
    return optimum(x, a, y, w) - 0.5 * self_terms


@pytest.mark.parametrize("blur", [0.5, 1.0])
def test_sinkhorn_is_its_definition_with_weights(blur):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (4, 6))
    w = torch.rand(6, generator=g, dtype=torch.float64)
    expected = sinkhorn_by_iteration(x, y, w / w.sum(), 2 * blur**2)
    assert_close(Sinkhorn(y, blur, w).value(x), expected, rtol=1e-8)


@given(clouds(degenerate=False), st.floats(0.2, 2.0))
def test_a_sample_without_weight_or_twice_is_as_good_as_none_or_twice_the_weight(c, blur):
    w = torch.cat([c.wp, torch.zeros_like(c.wp[..., :1])], -1)
    more = torch.cat([c.pos, c.pos[..., :1, :] + 5], -2)
    assert_close(
        Sinkhorn(more, blur, w).velocity(c.x), Sinkhorn(c.pos, blur, c.wp).velocity(c.x), atol=1e-7
    )
    twice = torch.cat([c.pos, c.pos[..., :1, :]], -2)
    double = torch.ones_like(c.wp)
    double[..., 0] = 2
    assert_close(
        Sinkhorn(twice, blur).velocity(c.x), Sinkhorn(c.pos, blur, double).velocity(c.x), atol=1e-7
    )


@given(clouds(degenerate=False), st.floats(0.2, 2.0))
def test_sinkhorn_has_the_value_that_each_cloud_has_alone(c, blur):
    lead = c.x.shape[:-2]
    if not lead:
        return
    F = Sinkhorn(c.pos, blur, c.wp)
    each = zip(
        *(t.reshape(-1, *t.shape[len(lead) :]) for t in (c.x, c.pos, c.wp, F.velocity(c.x))),
        strict=True,
    )
    for x, pos, w, velocity in each:
        assert torch.equal(Sinkhorn(pos, blur, w).velocity(x), velocity)


@given(clouds(degenerate=False), st.floats(0.2, 1.0), st.sampled_from([2.0**11, 2.0**17]))
def test_sinkhorn_is_blind_to_translations_in_float32(c, blur, offset):
    """The clouds lie on a grid that float32 still resolves at the offset, so nothing is rounded."""
    x, y = ((t.float() * 16).round() / 16 for t in (c.x, c.pos))
    here, there = Sinkhorn(y, blur), Sinkhorn(y + offset, blur)
    assert torch.equal(x + offset - offset, x)
    assert_close(there.value(x + offset), here.value(x), rtol=1e-6, atol=1e-6)
    assert_close(there.velocity(x + offset), here.velocity(x), rtol=1e-6, atol=1e-6)


def test_sinkhorn_has_second_derivatives_and_refuses_a_third():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 6))
    w = torch.rand(6, generator=g, dtype=torch.float64)
    value = lambda x, y: Sinkhorn(y, 0.4, w).value(x)
    velocity = lambda x, y: Sinkhorn(y, 0.4, w).velocity(x)
    assert torch.autograd.gradcheck(value, (x, y), atol=1e-6)
    assert torch.autograd.gradcheck(velocity, (x, y), atol=1e-6)
    assert torch.autograd.gradgradcheck(value, (x, y), atol=1e-5)
    (first,) = torch.autograd.grad(value(x, y), x, create_graph=True)
    assert_close(velocity(x, y), -len(x) / 2 * first)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="two derivatives"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("distance", [1e18, 1e200])
def test_a_distant_sample_without_weight_is_as_good_as_none(distance):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (4, 6))
    far = torch.cat([y, torch.full((1, 2), distance, dtype=torch.float64)])
    w = torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64)
    F, alone = Sinkhorn(far, 0.5, w), Sinkhorn(y, 0.5, 1e308 * torch.ones_like(y[:, 0]))
    assert_close(F.value(x), alone.value(x))
    assert_close(F.velocity(x), alone.velocity(x))
    with pytest.raises(ValueError, match="overflows; rescale"):
        Sinkhorn(far / distance * 1e200, 0.5).value(x)


@pytest.mark.parametrize("blur", [1e4, 1e9])
def test_a_large_blur_leaves_the_distance_of_the_means(blur):
    """Plans tend to a ⊗ b, for which the three terms leave |mean x - mean y|²."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (4, 6))
    expected = (x.mean(0) - y.mean(0)).square().sum()
    assert_close(Sinkhorn(y, blur).value(x), expected, rtol=1e-6)


def test_sinkhorn_says_where_its_plan_is_not_solved():
    """Clouds 1e4 blurs wide, and of different shares: potentials differ by more exponents than steps suffice for."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (12, 17))
    with pytest.warns(RuntimeWarning, match="larger blur"):
        Sinkhorn(y, blur=1e-6).value(x)


def test_sinkhorn_flows_to_its_samples():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(30, 2, generator=g, dtype=torch.float64) + 2
    F = Sinkhorn(y, blur=0.05)
    x0 = torch.randn(30, 2, generator=g, dtype=torch.float64)
    path = flow(F, x0, solver=Euler(0.5), steps=15)
    assert F.value(path.end) < 0.02 * F.value(x0)
