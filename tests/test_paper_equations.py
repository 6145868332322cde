"""Equations of Koo et al. 2026 (arXiv 2605.07727) that no other test covers, and the table of all of them."""

import importlib
import math
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, special

from tests.closed_forms import random_gaussian
from tests.strategies import assert_close, clouds, kernels
from wgflow import (
    KDE,
    Gaussian,
    ReverseKL,
    boltzmann_weights,
    bounds,
    drifting_field,
    drifting_loss,
    level_set_weights,
    mean_shift,
    top_k_weights,
    total_variation,
)
from wgflow.testing import gaussians

ROOT = Path(__file__).resolve().parent.parent


# ---- Eqs. 4 to 6 and Lemma 1 -------------------------------------------------------------------------------------


@given(clouds(batch=False), kernels())
def test_the_drifting_loss_times_the_dimension_is_the_mean_squared_norm_of_the_field(c, kernel):
    """Eq. 4, whose value E|V|² the proof of Proposition 1 uses; ours is the mean over coordinates."""
    field = lambda x, y: drifting_field(x, y, c.neg, kernel=kernel, pos_weights=c.wp)
    loss = drifting_loss(c.x, c.pos, field=field)
    value = bounds.drift_loss(c.x, c.pos, c.wp, c.neg, kernel=kernel)
    assert_close(c.x.shape[-1] * loss, value, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.2, 2.0))
def test_a_gaussian_carried_by_the_drift_solves_the_continuity_equation(seed, dim, h):
    """Eq. 5: ∂_t log q = -div V - V·∇log q, with ∂_t q through the moments of `moment_flow`; V = -∇δF/δq."""
    generator = torch.Generator().manual_seed(seed)
    p, (m, S) = (random_gaussian(dim, generator) for _ in range(2))
    x = torch.randn(5, dim, generator=generator, dtype=torch.float64)

    def log_q(x, m, S):
        return torch.distributions.MultivariateNormal(m, S).log_prob(x)

    V = gaussians.drift(x, p, (m, S), h=h)
    rate = torch.func.jvp(
        lambda m, S: log_q(x, m, S), (m, S), gaussians.moment_flow(p, (m, S), h=h)
    )
    jacobian = torch.func.jacrev(lambda y: gaussians.drift(y, p, (m, S), h=h))(x[0])
    score = torch.func.grad(lambda y: log_q(y, m, S).sum())(x)
    assert_close(rate[1], -jacobian.trace() - (V * score).sum(-1), rtol=1e-8, atol=1e-8)


def test_the_first_variation_of_kl_is_the_log_ratio_plus_one_and_its_gradient_the_score_difference():
    """Eqs. 23, 24 and 6 on a grid: ∂/∂q_i Σ p f(q/p) = log(q_i/p_i) + 1, f of `ReverseKL`."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    g = torch.Generator().manual_seed(0)
    p, q = (
        KDE(torch.randn(5, 1, generator=g, dtype=torch.float64), Gaussian(1.0)) for _ in range(2)
    )
    log_p, log_q = p.log_density(x), q.log_density(x)
    density = log_q.exp().detach().requires_grad_()
    value = (log_p.exp().detach() * ReverseKL().f(density.log() - log_p.detach())).sum()
    (variation,) = torch.autograd.grad(value, density)
    assert_close(variation, (log_q - log_p + 1).detach())
    (slope,) = torch.autograd.grad((log_q - log_p + 1).sum(), x)
    assert_close(slope, (q.score(x) - p.score(x)).detach())


# ---- Eqs. 10, 11, 19 to 22: Gibbs' variational principle ---------------------------------------------------------


def improvement(w, values, alpha):
    """J(w) = Σ w Q - α Σ w log(w N), the objective of Eq. 10 over N candidates drawn from π_old."""
    return (w * values).sum(-1) - alpha * torch.special.xlogy(w, w * len(values)).sum(-1)


@st.composite
def improvements(draw):
    """Values of N candidates, a temperature, and any other weighting of them."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = draw(st.integers(2, 20))
    values = draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(
        n, generator=g, dtype=torch.float64
    )
    other = (
        draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(n, generator=g).double()
    ).softmax(0)
    return values, draw(st.floats(0.05, 20.0)), other


@given(improvements())
def test_boltzmann_weights_maximise_the_regularised_value_over_candidates(case):
    """Gibbs: J(w) = α log mean exp(Q/α) - α KL(w || softmax(Q/α)), so J is largest at the weights of Eq. 11."""
    values, alpha, other = case
    best = boltzmann_weights(values, alpha=alpha)
    largest = alpha * ((values / alpha).logsumexp(0) - math.log(len(values)))
    assert_close(improvement(best, values, alpha), largest, rtol=1e-10, atol=1e-10)
    kl = (other * (other.log() - (values / alpha).log_softmax(0))).sum()
    assert_close(largest - improvement(other, values, alpha), alpha * kl, rtol=1e-9, atol=1e-9)
    for k in range(1, len(values) + 1):
        assert improvement(top_k_weights(values, k=k), values, alpha) <= largest + 1e-10


@given(improvements())
def test_the_lagrangian_is_stationary_at_the_boltzmann_weights(case):
    """Eqs. 20 and 21: Q - α (log(w/u) + 1) is one number λ, here α log mean exp(Q/α) - α, over all candidates."""
    values, alpha, _ = case
    n = len(values)
    w = boltzmann_weights(values, alpha=alpha).clamp_min(1e-300).requires_grad_()
    (slope,) = torch.autograd.grad(improvement(w, values, alpha), w)
    multiplier = alpha * ((values / alpha).logsumexp(0) - math.log(n)) - alpha
    seen = w.detach() > 1e-290
    assert_close(slope[seen], multiplier.expand(n)[seen], rtol=1e-9, atol=1e-9)


# ---- Eq. 31 ------------------------------------------------------------------------------------------------------


@given(clouds(batch=False), kernels())
def test_a_difference_of_drifting_losses_factorises(c, kernel):
    """Eq. 31: L(p) - L(p') = E (V⁺_p - V⁺_p')·(V⁺_p + V⁺_p' - 2 V⁻), two weightings p, p' of the same positives."""
    other = c.wp.flip(-1) + 0.1
    weights = [w / w.sum() for w in (c.wp, other)]
    losses = [bounds.drift_loss(c.x, c.pos, w, c.neg, kernel=kernel) for w in weights]
    one, two = (mean_shift(c.x, c.pos, kernel=kernel, weights=w) for w in weights)
    push = mean_shift(c.x, c.neg, kernel=kernel)
    product = ((one - two) * (one + two - 2 * push)).sum(-1).mean(-1)
    assert_close(losses[0] - losses[1], product, rtol=1e-9, atol=1e-9 * c.scale**2)


# ---- Appendix C.2: the joint sharp limit in total variation ------------------------------------------------------


def mass_within(radius, dim: int):
    """P(|z| <= radius) under N(0, I)."""
    return special.gammainc(dim / 2, np.square(radius) / 2)


def crossing(radius, dim: int):
    """r0, beyond which the uniform density on the ball is above that of N(0, I): r0² = 2 log(vol / (2π)^(dim/2))."""
    twice = dim * np.log(np.square(radius) / 2) - 2 * special.gammaln(dim / 2 + 1)
    return np.sqrt(np.maximum(0.0, twice))


def variation_at(radius, dim: int):
    """TV between N(0, I) and the uniform law on the ball of some radius, in closed form."""
    start = crossing(radius, dim)
    return 1 - (start / radius) ** dim - (mass_within(radius, dim) - mass_within(start, dim))


def least_variation(dim: int) -> tuple[float, float]:
    """(least TV, its radius)."""
    radii = np.sqrt(dim) * np.linspace(0.5, 3.0, 2001)
    i = int(np.argmin(variation_at(radii, dim)))
    found = optimize.minimize_scalar(
        lambda r: variation_at(r, dim), bounds=(radii[i - 1], radii[i + 1]), method="bounded"
    )
    return float(found.fun), float(found.x)


@pytest.mark.parametrize(("dim", "least"), [(1, 0.1851), (2, 0.2823), (25, 0.6466)])
def test_the_level_set_and_the_tilt_of_a_quadratic_value_are_never_near_in_total_variation(
    dim, least
):
    """The closed form is the integral of |u - g| / 2 over radii, and its least value over all radii."""
    found, radius = least_variation(dim)
    assert found == pytest.approx(least, abs=1e-4)
    gaussian = lambda r: dim * r ** (dim - 1) / 2 ** (dim / 2) / special.gamma(dim / 2 + 1)
    gap = lambda r: abs(
        dim * r ** (dim - 1) / radius**dim * (r <= radius) - gaussian(r) * math.exp(-r * r / 2)
    )
    start = crossing(radius, dim)
    pieces = ((0, start), (start, radius), (radius, radius + 12))
    total = sum(integrate.quad(gap, *piece)[0] for piece in pieces) / 2
    assert total == pytest.approx(found, abs=1e-8)
    for r in (0.1, 0.5, 0.9, 1.1, 2.0, 10.0):
        assert variation_at(r * radius, dim) > found


def test_the_least_variation_on_a_plane_solves_its_own_equation():
    """With s = R²/2, TV = 1 - (1 + log s)/s + exp(-s), least where s² exp(-s) = log s."""
    found, radius = least_variation(2)
    s = optimize.brentq(lambda s: s**2 * math.exp(-s) - math.log(s), 1.2, 2.0)
    assert radius**2 / 2 == pytest.approx(s, rel=1e-5)
    assert found == pytest.approx(1 - (1 + math.log(s)) / s + math.exp(-s), rel=1e-9)


def test_the_least_variation_rises_towards_one_with_the_dimension():
    values = [least_variation(dim)[0] for dim in (1, 2, 5, 25, 100, 1000)]
    assert values == sorted(values)
    assert values[-1] > 0.9


def sharp_laws(alpha: float, dim: int):
    """Actions around the maximum, the tilt of π_old, and its level sets: Q is quadratic only to leading order."""
    side = torch.linspace(-6, 6, 3001 if dim == 1 else 241, dtype=torch.float64) * math.sqrt(alpha)
    a = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    stiffness = torch.tensor([1.0, 2.5], dtype=torch.float64)[:dim]
    values = -(stiffness * a**2).sum(-1) / 2 + 0.3 * (a**3).sum(-1)
    log_old = -((a - 0.4) ** 2).sum(-1) / 2
    tilt = boltzmann_weights(values + alpha * log_old, alpha=alpha)
    thresholds = -alpha * torch.linspace(0.8, 2.4, 33, dtype=torch.float64)
    levels = [level_set_weights(values, threshold=t.item()) * log_old.exp() for t in thresholds]
    return a, tilt, [level / level.sum() for level in levels]


@pytest.mark.parametrize("dim", [1, 2])
def test_in_the_joint_sharp_limit_the_gap_in_total_variation_tends_to_that_of_the_quadratic(dim):
    """C.2: "both distributions collapse to δ ... and the gap vanishes". In W2 it does, in TV it does not."""
    least = []
    for alpha in (1e-2, 1e-3, 1e-4):
        _, tilt, levels = sharp_laws(alpha, dim)
        least.append(min(total_variation(level, tilt).item() for level in levels))
    assert least[-1] == pytest.approx(least_variation(dim)[0], abs=3e-3)
    assert least[-1] > 0.18


def test_in_the_joint_sharp_limit_the_fields_of_level_set_and_tilt_agree():
    """Both laws tend to a point mass, so V⁺ at a fixed bandwidth has one limit; the TV bound does not show it."""
    x, gaps = torch.tensor([[-0.5], [0.2], [0.8]], dtype=torch.float64), []
    for alpha in (1e-2, 1e-3, 1e-4):
        a, tilt, levels = sharp_laws(alpha, 1)
        best = min(levels, key=lambda level: total_variation(level, tilt).item())
        V, W = (mean_shift(x, a, kernel=Gaussian(0.5), weights=w) for w in (best, tilt))
        gaps.append((V - W).norm().item())
    assert gaps[2] < 0.2 * gaps[1] < 0.04 * gaps[0]


# ---- Table 5: repulsion at h = .05 in a 25-D chunk ---------------------------------------------------------------

G, D, H = 8, 25, 0.05


def repulsion_bound(spread: float) -> float:
    """(G - 1) σ sqrt(2 D) (1 + 4 σ²/h²)^(-(D + 2)/4) >= rms |V⁻| of G points of N(m, σ² I) among their negatives.

    |V⁻_i| <= Σ_{j≠i} d k(d), since k(0) = 1 is in the denominator, and d² = 2 σ² χ²_D.
    """
    return (G - 1) * spread * math.sqrt(2 * D) * (1 + 4 * spread**2 / H**2) ** (-(D + 2) / 4)


def groups(spread: float, points: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return spread * torch.randn(500, points, D, generator=g, dtype=torch.float64)


def rms(v: torch.Tensor) -> float:
    return v.square().sum(-1).mean().sqrt().item()


def test_at_the_bandwidth_of_table_5_read_as_a_length_eq_3_has_no_repulsion():
    """G = 8 points of spread σ >= .1 per coordinate: rms |V⁻| < 2.5e-8, below float32 beside |V⁺| of .6 and more."""
    assert repulsion_bound(0.1) < 2.5e-8
    for spread in (0.1, 0.2, 0.3):
        x, best = groups(spread, G), groups(spread, 4, seed=1)
        push, pull = (mean_shift(x, y, kernel=Gaussian(H)) for y in (x, best))
        assert repulsion_bound(spread) <= repulsion_bound(0.1)
        assert rms(push) < repulsion_bound(0.1)
        assert rms(pull) > 6 * spread
        assert rms(push) < torch.finfo(torch.float32).eps * rms(pull)


@pytest.mark.parametrize("spread", [0.005, 0.01, 0.02, 0.03, 0.05])
def test_the_repulsion_of_a_group_is_below_its_closed_form(spread):
    x = groups(spread, G)
    assert rms(mean_shift(x, x, kernel=Gaussian(H))) < repulsion_bound(spread)


def test_neither_keeping_nor_leaving_out_the_own_point_gives_the_repulsion_of_the_population():
    """Population q = N(0, σ² I): V⁻ = -h² x/(σ² + h²). Eight points give nothing, or the way to the nearest other."""
    spread = 0.1
    x = groups(spread, G)
    exact = rms(H**2 / (spread**2 + H**2) * x)
    assert exact == pytest.approx(0.1, rel=0.02)
    assert rms(mean_shift(x, x, kernel=Gaussian(H))) < 1e-6 * exact
    alone = mean_shift(x, x, kernel=Gaussian(H), skip_self=True)
    distance = torch.cdist(x, x).masked_fill(torch.eye(G, dtype=torch.bool), math.inf).amin(-1)
    assert rms(alone) == pytest.approx(distance.square().mean().sqrt().item(), rel=0.05)
    assert rms(alone) > 5 * exact


# ---- the table of docs/theory.md ---------------------------------------------------------------------------------


def rows_of_the_paper():
    """(number, equation, functions, tests) of every row of the tables of the paper's equations."""
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    part = page.split("\n## The paper, equation by equation\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (\d+|Alg\. 1) \| (.+?) \| (.+?) \| (.+?) \|", part, flags=re.MULTILINE)


def quoted(cell):
    return re.findall(r"`([\w.]+)`", cell)


def resolve(name):
    """The object of a dotted name: an attribute of wgflow, or a full path from wgflow or wgflow_rl."""
    parts = name.split(".")
    if parts[0] not in ("wgflow", "wgflow_rl"):
        parts = ["wgflow", *parts]
    thing, path = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        path = f"{path}.{part}"
        if not hasattr(thing, part):
            try:
                importlib.import_module(path)
            except ImportError:
                raise AssertionError(f"`{name}` names nothing that exists") from None
        thing = getattr(thing, part)
    return thing


def test_every_equation_of_the_paper_stands_in_the_table_once_and_in_order():
    assert [row[0] for row in rows_of_the_paper()] == [*map(str, range(1, 33)), "Alg. 1"]


def test_every_function_of_the_table_exists():
    names = {name for row in rows_of_the_paper() for name in quoted(row[2])}
    assert len(names) > 15
    trains = find_spec("gymnasium") is not None
    for name in names:
        assert (name.startswith("wgflow_rl.") and not trains) or callable(resolve(name))


def test_every_equation_has_a_formula_and_a_test():
    for number, formula, functions, tests in rows_of_the_paper():
        assert "$" in formula or number == "Alg. 1"
        assert quoted(functions) or functions == "none"
        assert quoted(tests), f"Eq. {number} has no test"
