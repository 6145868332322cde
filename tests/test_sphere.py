"""Fields on spheres: closed forms of von Mises-Fisher kernels on the circle and on S², and geodesics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds, rotation
from wgflow import (
    DriftingField,
    EnergyDistance,
    EnergyField,
    Gaussian,
    SphereField,
    exponential_map,
)

unit = lambda x: torch.nn.functional.normalize(x, dim=-1)


def vmf(kappa):
    return SphereField(DriftingField(Gaussian(kappa**-0.5)))


def quadrature(dim):
    """(points, weights) that integrate smooth functions over the circle or S², the pole being the first axis."""
    angle = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    if dim == 2:
        return circle, torch.ones(400, dtype=torch.float64)
    height, weight = (torch.as_tensor(t) for t in np.polynomial.legendre.leggauss(60))
    ring = (1 - height.square()).sqrt()[:, None, None] * circle[::4]
    points = torch.cat([height[:, None, None].expand(60, 100, 1), ring], -1)
    return points.flatten(0, 1), weight.repeat_interleave(100)


def meridian(dim, theta):
    """Points at angles theta from the pole, and their unit tangents away from it."""
    flat = torch.zeros(len(theta), dim - 2, dtype=torch.float64)
    return (
        torch.cat([theta.cos()[:, None], theta.sin()[:, None], flat], -1),
        torch.cat([-theta.sin()[:, None], theta.cos()[:, None], flat], -1),
    )


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("kappa", "kappa0"), [(1.0, 2.0), (8.0, 3.0)])
def test_the_score_of_a_smoothed_von_mises_fisher_law_has_its_closed_form(dim, kappa, kappa0):
    """p_h ∝ I_0(R) on the circle and sinh(R)/R on S², R² = κ² + κ0² + 2 κ κ0 cos θ; the negatives are uniform."""
    points, weights = quadrature(dim)
    theta = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    x, tangent = meridian(dim, theta)
    V = vmf(kappa)(
        x,
        points,
        neg=points,
        pos_weights=weights * (kappa0 * points[:, 0]).exp(),
        neg_weights=weights,
    )
    R = (kappa**2 + kappa0**2 + 2 * kappa * kappa0 * theta.cos()).sqrt()
    ratio = torch.special.i1(R) / torch.special.i0(R) if dim == 2 else 1 / R.tanh() - 1 / R
    assert_close(kappa * V, (-kappa * kappa0 * theta.sin() / R * ratio)[:, None] * tangent)


@pytest.mark.parametrize("dim", [2, 3])
def test_from_uniform_data_only_a_point_repels(dim):
    """V = -(y - (x·y) x): away from y, and 0 at y and at its antipode."""
    points, weights = quadrature(dim)
    x, tangent = meridian(dim, torch.linspace(0, math.pi, 9, dtype=torch.float64))
    V = vmf(5.0)(x, points, neg=x[:1], pos_weights=weights)
    assert_close(V, -(x[0] - (x @ x[0])[:, None] * x))
    assert_close(V, (V * tangent).sum(-1, keepdim=True) * tangent)


@given(c=clouds(degenerate=False), kappa=st.floats(0.1, 20))
def test_the_field_is_tangent_and_turns_with_the_sphere(c, kappa):
    x, pos, R = unit(c.x), unit(c.pos), rotation(c.x.shape[-1], c.generator)
    V = vmf(kappa)(x, pos, pos_weights=c.wp)
    assert_close((V * x).sum(-1), torch.zeros_like(V[..., 0]))
    assert_close(vmf(kappa)(x @ R, pos @ R, pos_weights=c.wp), V @ R, rtol=1e-7)


@given(c=clouds(degenerate=False))
def test_low_concentrations_see_means_only(c):
    x, pos, neg = unit(c.x), unit(c.pos), unit(c.neg)
    gap = pos.mean(-2, keepdim=True) - neg.mean(-2, keepdim=True)
    V = vmf(1e-7)(x, pos, neg=neg)
    assert_close(V, gap - (gap * x).sum(-1, keepdim=True) * x, atol=1e-5)


@given(c=clouds(degenerate=False, batch=False))
def test_the_projected_field_is_the_riemannian_gradient(c):
    """-N/2 times the derivative of the energy distance along geodesics."""
    x, pos = unit(torch.cat([c.x, c.x + 1])), unit(torch.cat([c.pos, c.pos + 1]))
    step = torch.zeros_like(x, requires_grad=True)
    value = EnergyDistance(pos).value(exponential_map(x, step))
    (slope,) = torch.autograd.grad(value, step)
    tangential = slope - (slope * x).sum(-1, keepdim=True) * x
    assert_close(SphereField(EnergyField())(x, pos), -len(x) / 2 * tangential)


@given(c=clouds(degenerate=False), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_geodesic_stays_on_the_sphere_and_has_the_length_of_its_step(c, dtype):
    x = unit(torch.cat([c.x, torch.ones_like(c.x)], -1)).to(dtype)
    V = unit(SphereField(EnergyField())(x, x.flip(-1))) * torch.tensor(2.5, dtype=dtype)
    end = exponential_map(x, V)
    assert_close(end.norm(dim=-1), torch.ones_like(end[..., 0]), atol=1e-6)
    moved = V.norm(dim=-1) > 0
    assert_close((end * x).sum(-1)[moved], V.norm(dim=-1).cos()[moved], atol=1e-5)
    assert_close(exponential_map(x, 0 * V), x, atol=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-6, 0.0099, 0.0101, 1.0, 3.0])
def test_a_geodesic_has_two_derivatives_where_a_flow_rests(length):
    """With the tangents e_1, e_2 at the pole p: p·exp(V) = cos|V| and e_1·exp(V) = V_1 sin|V| / |V|."""
    pole = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    V = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64) * length
    hessian = torch.autograd.functional.hessian
    plane = slice(0, 2)
    up = hessian(lambda V: exponential_map(pole, V)[0, 2], V)[0, plane, 0, plane]
    across = hessian(lambda V: exponential_map(pole, V)[0, 0], V)[0, plane, 0, plane]
    e, one = V[0, plane] / max(length, 1e-300), torch.eye(2, dtype=torch.float64)
    out = torch.outer(e, e)
    r = torch.tensor(length, dtype=torch.float64)
    slope = -torch.sinc(r / math.pi)  # cos'(r) / r
    assert_close(up, slope * one + (-r.cos() - slope) * out, atol=1e-9)
    if length == 0:
        assert_close(across, torch.zeros_like(across), atol=1e-9)
    assert_close(across, across.mT, atol=1e-9)


def test_a_relative_sphere_field_stays_on_the_sphere():
    field = SphereField(EnergyField())
    assert field.relative() == SphereField(EnergyField().relative())


@pytest.mark.parametrize("name", ["x", "pos", "neg"])
def test_points_off_the_sphere_are_named(name):
    x = unit(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    sets = {"x": x, "pos": x, "neg": x, name: 1.1 * x}
    with pytest.raises(ValueError, match=f"{name} has a point of norm 1.1"):
        SphereField(EnergyField())(**sets)
    with pytest.raises(ValueError, match="one vector for each point"):
        exponential_map(x, x[:1])
