"""Losses: where gradients go, and what the value of a normalised loss can and cannot say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds
from wgflow import balanced_field, balanced_scale, drifting_loss, energy_field, regress_onto


@given(clouds(degenerate=False))
def test_a_regression_pulls_only_on_its_first_argument(c):
    x, v = c.x.requires_grad_(), c.rand(*c.x.shape).requires_grad_()
    loss = regress_onto(x, v)
    grad_x, grad_v = torch.autograd.grad(loss, (x, v), allow_unused=True)
    assert grad_v is None
    assert_close(grad_x, -2 * v.detach() / v.numel())
    assert_close(loss.detach(), v.detach().square().mean())


@given(clouds(batch=False, degenerate=False), st.floats(1.0, 1e4))
def test_the_normalised_loss_is_one_at_any_distance_from_the_data(c, distance):
    """One temperature: the rms that normalises is the rms that is measured, so the value of the loss says nothing."""
    gen, pos = torch.stack([c.x, c.neg[:1] + c.x]), torch.stack([c.pos, c.pos]) + distance
    unit = balanced_scale(gen, pos)
    loss = regress_onto(gen / unit, balanced_field(gen, pos, temperatures=(0.1,)) / unit)
    assert loss.item() == pytest.approx(1.0, rel=1e-9)


def test_regression_keeps_its_digits_far_from_the_origin():
    x = torch.full((4, 2), 1e4)
    v = torch.full((4, 2), 1e-4)
    assert regress_onto(x, v).item() == pytest.approx(1e-8, rel=1e-6)


def test_drifting_loss_is_the_regression_onto_its_field():
    g = torch.Generator().manual_seed(0)
    gen = torch.randn(4, 6, 2, generator=g, requires_grad=True)
    pos = torch.randn(4, 3, 2, generator=g)
    loss = drifting_loss(gen, pos, field=energy_field)
    assert_close(loss, regress_onto(gen, energy_field(gen, pos)))
    assert loss.requires_grad
    released = drifting_loss(gen, pos, neg=pos + 1)
    (grad,) = torch.autograd.grad(released, gen)
    unit = balanced_scale(gen.detach(), pos, neg=pos + 1)
    V = balanced_field(gen.detach(), pos, neg=pos + 1)
    assert_close(grad, -2 * V / unit**2 / V.numel(), rtol=1e-5, atol=1e-7)


def test_a_generator_learns_its_data():
    """An affine generator of 1-D noise finds mean 2 and deviation .5 by energy_field alone."""
    g = torch.Generator().manual_seed(0)
    parameters = torch.tensor([0.0, 1.0], requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=0.02)
    for _ in range(400):
        gen = parameters[0] + parameters[1] * torch.randn(64, 1, generator=g)
        pos = 2 + 0.5 * torch.randn(64, 1, generator=g)
        optimiser.zero_grad()
        drifting_loss(gen, pos, field=energy_field).backward()
        optimiser.step()
    assert parameters[0].item() == pytest.approx(2.0, abs=0.1)
    assert abs(parameters[1].item()) == pytest.approx(0.5, abs=0.1)


def test_bad_losses_are_named():
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match="velocity is"):
        regress_onto(x, x[:2])
    with pytest.raises(ValueError, match="field"):
        drifting_loss(x, x, neg=x, field=energy_field)
