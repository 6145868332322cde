"""Fields for one positive: which are proper at finitely many generated points, and where the others come to rest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds
from wgflow import EnergyDistance, energy_field

betas = st.sampled_from([0.25, 0.5, 1.0, 1.5, 1.9])


def powered_score(x, pos, weights, beta):
    """Σ w |x-y|^β / Σ w - mean_{i≠j} |x_i-x_j|^β / 2, a number at a time: x [N, D], pos [P, D]."""
    n, total = len(x), 0.0
    for i in range(n):
        for y, w in zip(pos, weights / weights.sum(), strict=True):
            total = total + w * (x[i] - y).square().sum() ** (beta / 2) / n
        for j in range(n):
            if j != i:
                total = total - (x[i] - x[j]).square().sum() ** (beta / 2) / (2 * n * (n - 1))
    return total


@given(clouds(batch=False, degenerate=False), betas)
def test_the_energy_field_of_any_exponent_is_the_gradient_of_its_score(c, beta):
    """V_i = -N ∇_i of the U-statistic written out, weights included, by autograd."""
    x = c.x.requires_grad_()
    (grad,) = torch.autograd.grad(powered_score(x, c.pos, c.wp, beta), x)
    V = energy_field(x, c.pos, beta=beta, pos_weights=c.wp).detach()
    assert_close(V, -len(x) * grad, rtol=1e-8, atol=1e-8)


@given(clouds(degenerate=False), betas)
def test_the_energy_distance_of_any_exponent_is_a_functional_of_its_field(c, beta):
    """Its value by finite differences along a direction, in any batch: dF = -(1/N) Σ_i V_i · dx_i."""
    F, along, dt = EnergyDistance(c.pos, beta), c.rand(*c.x.shape), 1e-7
    rate = (F.value(c.x + dt * along) - F.value(c.x - dt * along)) / (2 * dt)
    assert_close(rate, -(F.velocity(c.x) * along).sum((-2, -1)) / c.x.shape[-2], rtol=1e-4, atol=1e-5)
    weights = torch.full_like(c.wp, 3.0)
    assert_close(F.velocity(c.x), energy_field(c.x, c.pos, beta=beta, pos_weights=weights))


@given(clouds(degenerate=False), betas, st.floats(0.01, 100.0))
def test_the_energy_field_has_the_units_of_its_exponent(c, beta, unit):
    V = energy_field(c.x, c.pos, c.neg, beta=beta)
    assert_close(energy_field(unit * c.x, unit * c.pos, unit * c.neg, beta=beta), unit ** (beta - 1) * V)


@given(clouds(degenerate=False))
def test_the_exponent_one_is_the_default(c):
    assert torch.equal(energy_field(c.x, c.pos, beta=1.0), energy_field(c.x, c.pos))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 1.5])
def test_coincident_points_pull_nothing_under_any_exponent(beta, dtype):
    """The slope r^(β-1) has no limit at 0 below 1; there the pull is zero, and its gradient finite."""
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    V = energy_field(x, torch.zeros(1, 2, dtype=dtype), beta=beta)
    assert_close(V[:, 1].detach(), torch.zeros_like(V[:, 1]))
    # The pair at 0 feels only the third point, which is pulled to the positive and pushed by the pair, and rests.
    expected = torch.tensor([-beta / 2, -beta / 2, 0.0], dtype=dtype)
    assert_close(V[:, 0].detach(), expected, atol=1e-6)
    (grad,) = torch.autograd.grad(V.square().sum(), x)
    assert grad.isfinite().all()
    assert EnergyDistance(torch.zeros(1, 2, dtype=dtype), beta).value(x.detach()).isfinite()


@pytest.mark.parametrize("beta", [0.0, 2.0, -1.0, float("nan")])
def test_an_exponent_that_is_not_proper_is_refused(beta):
    x = torch.zeros(2, 1)
    for call in (lambda: energy_field(x, x, beta=beta), lambda: EnergyDistance(x, beta)):
        with pytest.raises(ValueError, match="beta = .*0 < beta < 2"):
            call()
