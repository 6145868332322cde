"""Gradient flows of divergences between known densities: what Eq. 3 discretises goes downhill at the rate it should."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close
from wgflow import (
    KDE,
    Alpha,
    ChiSquare,
    ForwardKL,
    Gaussian,
    Hellinger,
    JensenShannon,
    ReverseKL,
    SkewKL,
    drifting_field,
)
from wgflow.testing import gaussians, toy

DIVERGENCES = [
    ReverseKL(), ForwardKL(), JensenShannon(), SkewKL(), ChiSquare(), Hellinger(), Alpha(0.3), Alpha(1.5),
]  # fmt: skip


def mixture(*parts: tuple[float, float, float]) -> toy.GaussianMixture:
    """(weight, mean, deviation) on the line, in float64."""
    w, m, s = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
    return toy.GaussianMixture(m[:, None], s, w)


P = mixture((0.6, -0.5, 0.8), (0.4, 1.2, 0.6))
Q = mixture((0.5, 0.0, 0.8), (0.5, 0.8, 0.5))
GRID = torch.linspace(-9, 9, 6001, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_a_divergence_falls_at_the_rate_of_its_mean_squared_velocity(divergence):
    """dD_f(q || p)/dt = -E_q v·u for q carried along u, v = weight (∇log p - ∇log q) with exact scores; u = v: -E|v|².

    By quadrature on the line. u is v faded out in the tails, where some weights have no bound and no mass is left.
    """
    x = GRID.clone().requires_grad_()
    v = divergence.weight(Q.log_density(x) - P.log_density(x)).unsqueeze(-1) * (
        P.score(x) - Q.score(x)
    )
    u = v * (-((x / 2) ** 4)).exp()
    (stretch,) = torch.autograd.grad(u.sum(), x)
    u, v, x, q = u.detach(), v.detach(), x.detach(), Q.log_density(GRID)

    def value(dt):
        """D of the carried density: q(x) / (1 + dt u') at x + dt u, as an integral over x."""
        jacobian = 1 + dt * stretch.squeeze(-1)
        log_p = P.log_density(x + dt * u)
        inside = log_p.exp() * divergence.f(q - jacobian.log() - log_p) * jacobian
        return torch.trapezoid(inside, GRID[:, 0]).item()

    rate = torch.trapezoid(q.exp() * (u * v).sum(-1), GRID[:, 0]).item()
    dt = 1e-5
    assert rate > 0.01
    assert (value(dt) - value(-dt)) / (2 * dt) == pytest.approx(-rate, rel=1e-6)


@given(h=st.floats(0.2, 1.5))
def test_population_fields_of_mixtures_are_exact(h):
    """A KDE of a fine weighted grid is the mixture smoothed by the kernel: density, score and Eq. 8 without samples."""
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(-1)
    p, q = (d.log_density(GRID).exp() for d in (P, Q))
    kde = KDE(GRID, Gaussian(h), p)
    assert_close(kde.log_density(x), P.smoothed(h).log_density(x), rtol=1e-7, atol=1e-7)
    assert_close(kde.score(x), P.smoothed(h).score(x), rtol=1e-7, atol=1e-7)
    V = drifting_field(x, GRID, GRID, kernel=Gaussian(h), pos_weights=p, neg_weights=q)
    assert_close(V, h**2 * (P.smoothed(h).score(x) - Q.smoothed(h).score(x)), rtol=1e-6, atol=1e-7)


def test_small_bandwidths_err_by_the_square_of_h():
    """V / h² -> ∇log p - ∇log q with an error of order h², measured over two octaves."""
    x = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64).unsqueeze(-1)
    exact = P.score(x) - Q.score(x)
    errors = [
        (P.smoothed(h).score(x) - Q.smoothed(h).score(x) - exact).norm().item()
        for h in (0.04, 0.02, 0.01)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2.0, abs=0.1)


@given(st.floats(-2.0, 2.0), st.floats(0.3, 2.0), st.floats(0.2, 1.5))
def test_the_smoothed_flow_of_gaussians_lowers_the_divergence_of_gaussians(mean, variance, h):
    """Population, Gaussian p and q: unlike on a finite cloud, Eq. 3 lowers KL(q || p) itself."""
    p = (torch.zeros(1).double(), torch.ones(1, 1).double())
    q = (torch.tensor([mean]).double(), torch.tensor([[variance]]).double())
    dm, dS = gaussians.moment_flow(p, q, h=h)
    before, after = (gaussians.kl((q[0] + t * dm, q[1] + t * dS), p).item() for t in (0.0, 1e-4))
    assert after <= before + 1e-12
