"""Derivatives of fields and metrics: by torch.func as by autograd, of second order, and finite at coincident points."""

import pytest
import torch
from torch.func import grad, jacrev, vmap

import wgflow as wg
from tests.strategies import assert_close

K = wg.Gaussian(0.7)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


Y, W = draw(5, 2), draw(5).exp()
FIELDS = {
    "drifting": lambda x: wg.drifting_field(x, Y, x, kernel=K, pos_weights=W),
    "likelihood": lambda x: wg.likelihood_field(x, Y, kernel=wg.Matern(0.7)),
    "energy": lambda x: wg.energy_field(x, Y),
    "published": lambda x: wg.published_field(x, Y, pos_weights=W),
    "sinkhorn": lambda x: wg.sinkhorn_field(x, Y, epsilon=0.5, pos_weights=W),
    "conservative": lambda x: wg.conservative_field(x, Y, x, kernel=K, pos_weights=W),
    "regression": lambda x: wg.kernel_average(x, Y, values=Y.cos(), kernel=K)[1],
    "stein": lambda x: wg.stein_field(x, lambda x: -x, kernel=K),
    "mean shift": lambda x: wg.mean_shift(x, Y, kernel=wg.Laplace(0.7)),
    "score": lambda x: wg.KDE(Y, K).score(x),
    "responsibilities": lambda x: wg.KDE(Y, K, W).responsibilities(x),
    "energy distance": lambda x: wg.energy_distance(x, Y),
}


def weighted(name):
    """A scalar function of x that sees every element of the field."""
    weights = draw(*FIELDS[name](draw(4, 2)).shape, 1).squeeze(-1)
    return lambda x: (FIELDS[name](x) * weights).sum()


def derivative(f, x):
    at = x.clone().requires_grad_()
    return torch.autograd.grad(f(at), at)[0]


@pytest.mark.parametrize("name", FIELDS)
def test_function_transforms_give_the_gradient_of_autograd(name):
    x, f = draw(4, 2), weighted(name)
    assert_close(grad(f)(x), derivative(f, x))
    several = torch.stack([x, 2 * x])
    assert_close(vmap(grad(f))(several), torch.stack([derivative(f, x), derivative(f, 2 * x)]))


@pytest.mark.parametrize("name", FIELDS)
def test_a_transform_around_vmap_gives_the_derivatives_of_autograd(name):
    """Inside vmap no tensor says that it is differentiated; of first and second order, a point on a sample."""
    several, f = torch.stack([torch.cat([Y[:1], draw(3, 2)]), draw(4, 2)]), weighted(name)
    slopes = lambda x: grad(lambda x: vmap(f)(x).sum())(x)

    def squared_slope(x):
        (slope,) = torch.autograd.grad(f(x), x, create_graph=True)
        return slope.square().sum()

    assert_close(slopes(several), torch.stack([derivative(f, x) for x in several]))
    second = grad(lambda x: slopes(x).square().sum())(several)
    assert_close(second, torch.stack([derivative(squared_slope, x) for x in several]), rtol=1e-7)


@pytest.mark.parametrize("name", FIELDS)
def test_the_jacobian_of_a_transform_is_that_of_finite_differences(name):
    x, v, eps = draw(4, 2), draw(4, 2).cos(), 1e-6
    f = FIELDS[name]
    along = (f(x + eps * v) - f(x - eps * v)) / (2 * eps)
    assert_close((jacrev(f)(x) * v).sum((-2, -1)), along, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FIELDS)
def test_second_derivatives_are_those_of_finite_differences(name):
    x = draw(4, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(weighted(name), x, atol=1e-4)


@pytest.mark.parametrize("name", FIELDS)
def test_derivatives_at_coincident_points_are_finite(name):
    """A point on a sample, and two points on each other."""
    x = torch.cat([Y[:2], Y[:1], draw(1, 2)])
    assert derivative(weighted(name), x).isfinite().all()


SHARED = {
    "likelihood": lambda x, y: wg.likelihood_field(x, y, kernel=wg.Matern(0.7)),
    "regression": lambda x, y: wg.kernel_average(x, y, values=y.cos(), kernel=K)[1],
    "mean shift": lambda x, y: wg.mean_shift(x, y, kernel=wg.Laplace(0.7)),
}


@pytest.mark.parametrize("name", SHARED)
def test_gradients_of_a_cloud_that_a_batch_shares_are_those_of_its_copies(name):
    x, weights = draw(3, 4, 2), draw(3, 4, 2).cos()
    value = lambda y: (SHARED[name](x, y) * weights).sum()
    assert_close(derivative(value, Y), derivative(lambda y: value(y.expand(3, 5, 2)), Y))
