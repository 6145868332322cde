"""Where the fields that are not proper come to rest: exact small cases of likelihood, Eq. 3, the release, mixtures."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from tests.strategies import assert_close, clouds
from wgflow import (
    ForwardKL,
    Gaussian,
    drifting_field,
    energy_field,
    likelihood_field,
    mmd_field,
    published_field,
)


def binomial(n, u):
    """The chances of 0 ... n, [n + 1]."""
    k = torch.arange(n + 1, dtype=torch.float64)
    log_ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return log_ways.exp() * u**k * (1 - u) ** (n - k)


def minimiser(f, low=0.0, high=1.0):
    """Of a convex function of one number, by golden section."""
    return optimize.minimize_scalar(
        f, bounds=(low, high), method="bounded", options={"xatol": 1e-10}
    ).x


@pytest.mark.parametrize("points", [2, 4, 8])
@given(w=st.floats(0.02, 0.5))
def test_points_that_repel_themselves_underweigh_the_rare_mode(points, w):
    """neg=x keeps the own distance 0 among the repulsions: at rest u = w - (1 - 2w) / (2(G - 1)), not w."""
    n = torch.arange(points + 1, dtype=torch.float64)

    def score(u):  # E of mean|x-y| - mean_ij|x_i-x_j|/2 on two points at distance 1
        pmf = binomial(points, u)
        share = n / points
        return (pmf * (w * (1 - share) + (1 - w) * share - share * (1 - share))).sum().item()

    rest = minimiser(score)
    assert rest == pytest.approx(max(w - (1 - 2 * w) / (2 * (points - 1)), 0), abs=1e-5)


@given(clouds(batch=False, degenerate=False))
def test_points_among_their_own_negatives_descend_the_score_with_own_distances(c):
    """energy_field(x, y, neg=x) = -G ∇ of mean|x-y| - mean_ij|x_i-x_j| / 2, the zeros i = j counted."""
    x, y = c.x.requires_grad_(), c.pos[:1]
    apart = lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean()
    (grad,) = torch.autograd.grad(apart(x, y) - apart(x, x) / 2, x)
    assert_close(energy_field(x.detach(), y, x.detach()), -len(x) * grad)


# -- likelihood -----------------------------------------------------------------------------------------------------


def covered(points, u, depth):
    """E -log (1/G) Σ k of a mode that each of G points hits with chance u; k = 1 there, exp(-depth) elsewhere."""
    n = torch.arange(points + 1, dtype=torch.float64)
    k = (n + (points - n) * math.exp(-depth)) / points
    log_k = torch.where(
        n > 0, k.log(), torch.tensor(-depth, dtype=torch.float64)
    )  # exp may have underflowed
    return -(binomial(points, u) * log_k).sum().item()


def likelihood_loss(points, w, depth):
    """u -> E -log (1/G) Σ k(x_j - y), p = (w, 1 - w) and q = (u, 1 - u) on two points at depth a²/2h²."""
    return lambda u: w * covered(points, u, depth) + (1 - w) * covered(points, 1 - u, depth)


@given(w=st.floats(0.02, 0.5), points=st.integers(3, 16))
def test_two_far_modes_rest_at_the_root_of_their_odds(w, points):
    """As a/h grows, u / (1 - u) tends to (w / (1 - w))^(1 / (G - 1)): more than w for every w < 1/2 once G > 2."""
    rest = minimiser(likelihood_loss(points, w, 1e7))
    assert rest == pytest.approx(1 / (1 + ((1 - w) / w) ** (1 / (points - 1))), abs=1e-4)
    assert rest > w or w > 0.499


@given(w=st.floats(0.2, 0.5), depth=st.floats(3.0, 50.0))
def test_two_points_underweigh_the_rare_mode(w, depth):
    """G = 2, any a/h: u = w - B (1 - 2w) / (a²/2h² - 2B), B = log 2 - log(1 + exp(-a²/2h²)), and 0 if that is less."""
    B = math.log(2) - math.log1p(math.exp(-depth))
    rest = minimiser(likelihood_loss(2, w, depth))
    assert rest == pytest.approx(max(0.0, w - B * (1 - 2 * w) / (depth - 2 * B)), abs=1e-6)


@pytest.mark.parametrize(
    ("w", "points", "rest"),
    [(0.1, 2, 0.0501), (0.1, 4, 0.2493), (0.1, 8, 0.2592), (0.1, 16, 0.1928), (0.1, 32, 0.1395), (0.1, 64, 0.1104),
     (0.3, 2, 0.2751), (0.3, 4, 0.4063), (0.3, 8, 0.4077), (0.3, 16, 0.3339), (0.3, 32, 0.3076), (0.3, 64, 0.3034)],
)  # fmt: skip
def test_the_likelihood_overweighs_the_rare_mode_at_a_middling_number_of_points(w, points, rest):
    """h = .2 of the distance between the modes: the table of the page."""
    assert minimiser(likelihood_loss(points, w, 12.5)) == pytest.approx(rest, abs=6e-5)


def test_three_modes_rest_near_where_networks_found_them():
    """.6 .3 .1 at equal distances a, G = 8, h = .4 of the mean distance a (1 - Σ w_m u_m): the shares of the page."""
    w, u = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.48, 0.35, 0.17]).double()
    for _ in range(8):
        depth = 1 / (2 * (0.4 * (1 - (w @ u).item())) ** 2)

        def loss(logits, depth=depth):
            shares = torch.from_numpy(logits).softmax(0).tolist()
            return sum(a * covered(8, b, depth) for a, b in zip(w.tolist(), shares, strict=True))

        u = torch.from_numpy(optimize.minimize(loss, u.log().numpy(), method="BFGS").x).softmax(0)
    assert u.tolist() == pytest.approx([0.481, 0.345, 0.175], abs=6e-4)
    assert u.tolist() == pytest.approx(
        [0.51, 0.35, 0.15], abs=0.03
    )  # the networks of the toys' table


@given(w=st.floats(0.05, 0.45), depth=st.floats(1.0, 6.0))
def test_many_points_deconvolve(w, depth):
    """G → ∞: u + (1 - u) e = w (1 + e), so that u < w; where that is negative, u = 0."""
    e = math.exp(-depth)
    loss = lambda u: -w * math.log(u + (1 - u) * e) - (1 - w) * math.log(1 - u + u * e)
    rest = (w * (1 + e) - e) / (1 - e)
    assert minimiser(loss) == pytest.approx(max(rest, 0), abs=1e-6)
    assert rest < w


@pytest.mark.parametrize(("variance", "h"), [(1.0, 0.5), (1.0, 0.95), (0.2, 0.5), (0.25, 0.5)])
def test_the_likelihood_rests_at_the_deconvolved_law(variance, h):
    """p = N(0, P): the minimiser over all q is N(0, P - h²), and a single point once P <= h².

    A law is the minimiser if and only if E_y k(x - y) / (k * q)(y) <= 1 everywhere, with equality on its support.
    """
    rest = max(variance - h**2, 0)
    y = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    normal = lambda y, v: (-y.square() / (2 * v)).exp() / math.sqrt(2 * math.pi * v)
    ratio = normal(y, variance) / normal(y, rest + h**2)
    for x in (0.0, 0.3, 1.0, 2.0):
        cover = torch.trapezoid(ratio * normal(y - x, h**2), y).item()
        expected = 1.0 if rest else math.exp(x**2 * (variance - h**2) / (2 * h**4))
        assert cover == pytest.approx(expected, abs=1e-6)
        assert cover <= 1 + 1e-6


def log_of_mean(points, u, jackknife=False):
    """E log of a mean over G draws of k in {1, .2} (1 with chance u), or of its jackknife; and log E k."""
    n = torch.arange(points + 1, dtype=torch.float64)
    mean = lambda n, G: (n + 0.2 * (G - n)) / G
    log_k = mean(n, points).log()
    if jackknife:
        without_near = mean((n - 1).clamp_min(0), points - 1).log()
        without_far = mean(n.clamp_max(points - 1), points - 1).log()
        left_out = (n * without_near + (points - n) * without_far) / points
        log_k = points * log_k - (points - 1) * left_out
    return (binomial(points, u) * log_k).sum().item(), math.log(u + 0.2 * (1 - u))


def test_the_log_of_a_mean_is_low_by_its_variance_over_twice_the_number():
    u = 0.3
    relative = u * (1 - u) * 0.8**2 / (u + 0.2 * (1 - u)) ** 2
    remainders = []
    for points in (20, 40, 80):
        expected, exact = log_of_mean(points, u)
        assert expected < exact
        remainders.append(points**2 * abs(expected - exact + relative / (2 * points)))
    assert max(remainders) < 1.1 * min(remainders) + 0.05
    losses = [covered(points, u, 3.0) for points in range(1, 12)]
    assert losses == sorted(
        losses, reverse=True
    )  # each more point lowers the loss towards that of the law


def test_a_jackknife_takes_the_first_term_of_the_bias():
    biases = [log_of_mean(points, 0.3, jackknife=True) for points in (20, 40, 80)]
    scaled = [
        points**2 * abs(j - exact) for points, (j, exact) in zip((20, 40, 80), biases, strict=True)
    ]
    assert max(scaled) < 1
    plain, exact = log_of_mean(40, 0.3)
    assert abs(biases[1][0] - exact) < 0.1 * abs(plain - exact)


def jackknifed(x, h=1.0):
    """G log L_G - (G - 1) mean_i log L_(G-1) without i, for points x [G, D] and a positive at the origin."""
    G = len(x)
    log_k = Gaussian(h).log(x.square().sum(-1))
    whole = log_k.logsumexp(0) - math.log(G)
    parts = [log_k[torch.arange(G) != i].logsumexp(0) - math.log(G - 1) for i in range(G)]
    return G * whole - (G - 1) * torch.stack(parts).mean()


@given(clouds(batch=False, degenerate=False))
def test_the_jackknifed_field_is_a_gradient(c):
    """h² ∇_m = (G/S - (G-1)/G Σ_{i≠m} 1/(S - k_i)) k_m (y - x_m), y = 0."""
    x, G = c.x.requires_grad_(), len(c.x)
    (grad,) = torch.autograd.grad(jackknifed(x, c.h), x)
    k = Gaussian(c.h).log(x.detach().square().sum(-1)).exp()
    others = 1 - torch.eye(
        G, dtype=k.dtype
    )  # not a difference of sums: one k may be all of its sum
    weight = (G / k.sum() - (G - 1) / G * (others @ (1 / (others @ k)))) * k
    assert_close(c.h**2 * grad, -weight[:, None] * x.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("points", [2, 8])
def test_a_jackknifed_likelihood_pays_points_to_flee(points):
    """One point on the positive, the others far: the debiased log grows with their distance R by (1 - 1/G) R²/2h²."""

    def debiased(R):
        x = torch.full((points, 1), R, dtype=torch.float64)
        x[0] = 0
        return jackknifed(x).item()

    assert debiased(40.0) - debiased(20.0) == pytest.approx(
        (1 - 1 / points) * (40**2 - 20**2) / 2, rel=1e-6
    )


@pytest.mark.parametrize("points", [2, 8])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_a_jackknifed_likelihood_has_no_minimum_among_laws(points, share):
    """A share v on the positive, the rest at R: E of the loss goes as (1-v)^(G-1) (1 - Gv) R²/2h², down for v > 1/G."""

    def expected(R):
        groups = [
            torch.tensor([0.0] * n + [R] * (points - n)).double()[:, None]
            for n in range(points + 1)
        ]
        return -(binomial(points, share) @ torch.stack([jackknifed(x) for x in groups])).item()

    slope = (1 - share) ** (points - 1) * (1 - points * share)
    assert expected(40.0) - expected(20.0) == pytest.approx(
        slope * (40**2 - 20**2) / 2, rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("points", [2, 3, 4])
def test_an_expectation_over_groups_is_a_polynomial_of_their_size(points):
    """Along mixtures the loss has degree at most G, and a log has none: no loss of G points is the log score."""
    at = torch.linspace(0.05, 0.95, points + 2).double().tolist()
    # The divided difference of order G + 1.
    lagrange = lambda values: abs(
        sum(v / math.prod(a - b for b in at if b != a) for a, v in zip(at, values, strict=True))
    )
    assert lagrange([likelihood_loss(points, 0.3, 3.0)(u) for u in at]) < 1e-8
    assert lagrange([-0.3 * math.log(u + (1 - u) * math.exp(-3.0)) for u in at]) > 1e-2


@given(st.integers(2, 12), st.floats(0.0, 1.0), st.floats(0.5, 20.0))
def test_the_likelihood_is_convex_along_mixtures(points, w, depth):
    """-log S = ∫ (exp(-tS) - exp(-t)) dt/t makes it so at every G: no false minimum among mixtures."""
    loss = likelihood_loss(points, w, depth)
    values = torch.tensor(
        [loss(u) for u in torch.linspace(0.0, 1.0, 9).tolist()], dtype=torch.float64
    )
    assert values.diff().diff().min() > -1e-11


# -- Eq. 3, the published normalisation --------------------------------------------------------------------------------


@given(clouds(degenerate=False), st.floats(0.1, 10.0))
def test_eq_3_with_one_positive_draws_every_group_together(c, h):
    """Σ_ij (x_i - x_j) · (V_i - V_j) <= 0 for every group, positive and bandwidth: no spread is at rest but none."""
    y = c.pos[..., :1, :]
    V = drifting_field(c.x, y, c.x, kernel=Gaussian(h))
    apart, change = c.x.unsqueeze(-2) - c.x.unsqueeze(-3), V.unsqueeze(-2) - V.unsqueeze(-3)
    assert ((apart * change).sum((-3, -2, -1)) < 0).all()


@given(clouds(batch=False, degenerate=False), st.floats(0.1, 10.0))
def test_eq_3_with_one_positive_narrows_every_law(c, h):
    """Move one point of a group to x': (x - x') · (V_1(x) - V_1(x')) <= -|x - x'|² / G, the others where they were."""
    other = c.x.clone()
    other[0] = c.neg[0]
    V, V_other = (drifting_field(x, c.pos[:1], x, kernel=Gaussian(h))[0] for x in (c.x, other))
    apart = c.x[0] - other[0]
    assert apart @ (V - V_other) <= -(apart @ apart) / len(c.x) * (1 - 1e-9)


def group_at_equal_distances(points, spread):
    """A regular simplex of that edge and a positive at distance 1 from all of it."""
    x = torch.eye(points, dtype=torch.float64) - 1 / points
    x = x * (spread / math.sqrt(2))
    height = math.sqrt(1 - x[0].square().sum().item())
    return x, torch.full((1, points), height / math.sqrt(points), dtype=torch.float64)


@pytest.mark.parametrize("R", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("points", [4, 8, 16])
def test_below_a_spread_every_positive_affinity_of_the_published_field_meets_the_clip(points, R):
    """The clip c is met where spread/distance < (G+1-L) / (G+1 + (G-1)L), with L = R log((1-cG) / (cG(G-1)))."""
    clip = 1e-6
    L = R * math.log((1 - clip * points) / (clip * points * (points - 1)))
    threshold = (points + 1 - L) / (points + 1 + (points - 1) * L)
    for spread, clipped in ((0.99 * threshold, True), (1.01 * threshold, False)):
        x, y = group_at_equal_distances(points, spread)
        d = torch.cdist(x, torch.cat([x, y]))
        logits = -(d / d.mean() + 100 * torch.eye(points, points + 1)) / R
        affinity = (logits.softmax(-1) * logits.softmax(-2))[:, -1]
        assert ((affinity < clip) == clipped).all()
        # The field itself, its rms left out by a floor: a lower clip lowers the pull only where the clip was met.
        pull = [
            (published_field(x, y, temperatures=(R,), clip=c, rms_floor=1e6) @ y.T).mean().item()
            for c in (clip, clip / 4)
        ]
        assert pull[1] < 0.99 * pull[0] if clipped else pull[1] == pytest.approx(pull[0], rel=2e-3)


def test_a_clipped_group_sees_only_the_mean_of_the_positives():
    """Positives at -e and +e: the published field of a tight group between them averages to 0, energy's opens it."""
    g = torch.Generator().manual_seed(0)
    x = 1e-5 * torch.randn(8, 2, generator=g, dtype=torch.float64)
    e = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    published = [published_field(x, s * e, temperatures=(0.1,)) for s in (-1, 1)]
    size = published[0].square().mean().sqrt()
    assert torch.stack(published).mean(0).abs().max() < 5e-3 * size
    assert (published[0] - published[0].mean(0)).abs().max() < 5e-3 * size
    # V_i is in proportion to y - the mean of the other points, which knows nothing of x_i: it opens no law.
    rate = ((published[1] - published[0]) @ e.T).mean() / 2
    others = (x.sum(0) - x) / (len(x) - 1)
    assert_close(
        torch.stack(published).mean(0),
        -rate * others,
        rtol=0,
        atol=0.05 * (rate * others).abs().max().item(),
    )
    energy = torch.stack([energy_field(x, s * e) for s in (-1, 1)]).mean(0)
    assert ((x - x.mean(0)) * energy).sum() > 0.1 * (x - x.mean(0)).abs().sum()


# -- scaling by the batch, mixing, annealing --------------------------------------------------------------------------


def rest_under_rms(states, w, other_states=False):
    """x where E[(y - x) / rms] = 0 over batches of single positives y in {0, 1}, P(y = 1) = w; by enumeration."""
    chances = binomial(states, w)

    def mean_step(x):
        total = 0.0
        for n in range(states + 1):
            v = torch.tensor([1.0 - x] * n + [-x] * (states - n), dtype=torch.float64)
            if other_states:
                square = v.square()
                v = v / ((square.sum() - square) / (states - 1)).sqrt()
            else:
                v = v / v.square().mean().sqrt()
            total += chances[n].item() * v.mean().item()
        return total

    return optimize.brentq(mean_step, 1e-9, 1 - 1e-9) if mean_step(1e-9) > 0 else 0.0


@pytest.mark.parametrize("w", [0.3, 0.4])
def test_dividing_by_the_rms_of_the_batch_moves_the_rest_by_one_over_its_size(w):
    """w - (1 - 2w) / 2B + O(1/B²): the rarer value gets less; one state in a batch clones the median, not the mean."""
    assert rest_under_rms(1, w) == pytest.approx(0.0, abs=1e-8)
    for states in (32, 64):
        moved = rest_under_rms(states, w) - w
        assert moved == pytest.approx(-(1 - 2 * w) / (2 * states), abs=2 / states**2)
    assert rest_under_rms(8, 0.5) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("w", [0.3, 0.4])
def test_dividing_by_the_rms_of_other_states_moves_nothing(w):
    """Any positive scale that is independent of the draw it divides, an average over earlier batches as well."""
    for states in (4, 12):
        assert rest_under_rms(states, w, other_states=True) == pytest.approx(w, abs=1e-9)


def mixed_loss(weight, points=8, w=0.1, depth=12.5):
    """weight of the energy score (u - w)² on two points, the rest of the likelihood."""
    likelihood = likelihood_loss(points, w, depth)
    return lambda u: weight * (u - w) ** 2 + (1 - weight) * likelihood(u)


def test_a_mixture_of_a_proper_and_an_improper_score_rests_between_them():
    rests = [minimiser(mixed_loss(weight)) for weight in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)]
    assert rests == sorted(rests, reverse=True)
    assert rests[-1] == pytest.approx(0.1, abs=1e-6)
    assert all(a > b + 1e-4 for a, b in itertools.pairwise(rests))


@given(weight=st.floats(0.05, 0.999), w=st.floats(0.05, 0.5), points=st.integers(2, 12))
def test_a_mixture_is_off_by_no_more_than_the_regret_of_its_improper_part(weight, w, points):
    """MMD² / 2 <= (1 - λ) / λ (L₂(p) - min L₂)."""
    likelihood = likelihood_loss(points, w, 12.5)
    regret = likelihood(w) - likelihood(minimiser(likelihood))
    rest = minimiser(mixed_loss(weight, points, w))
    assert (rest - w) ** 2 <= (1 - weight) / weight * regret + 1e-9


def test_an_anneal_rests_where_its_last_weight_rests():
    """Minimisers follow the weight, the distance to p at most in proportion to what is left of the likelihood."""
    for left in (1e-2, 1e-3, 1e-4):
        assert 0 < minimiser(mixed_loss(1 - left)) - 0.1 < 5 * left
    u = minimiser(mixed_loss(0.0))
    assert u > 0.25
    for step in range(200):
        weight, eps = min(1.0, step / 100), 1e-6
        loss = mixed_loss(weight)
        u -= 0.1 * (loss(u + eps) - loss(u - eps)) / (2 * eps)
    assert u == pytest.approx(0.1, abs=1e-5)


# -- one Gaussian, by simulation --------------------------------------------------------------------------------------

RESTS = {
    "energy": (lambda x, y: energy_field(x, y), 1.0),
    "mmd": (lambda x, y: mmd_field(x, y, kernel=Gaussian(0.5)), 1.0),
    "likelihood": (lambda x, y: likelihood_field(x, y, kernel=Gaussian(0.5)), 0.76),
    "forward KL": (
        lambda x, y: drifting_field(x, y, x, kernel=Gaussian(0.5), divergence=ForwardKL()),
        0.54,
    ),
}


@pytest.mark.parametrize("name", RESTS)
def test_the_width_at_which_a_gaussian_rests(name):
    """p = N(0, 1), q = N(0, S), 8 points: the S with E[x V] = 0, which is where the variance stops moving."""
    field, rest = RESTS[name]

    def growth(S):
        g = torch.Generator().manual_seed(0)
        x = math.sqrt(S) * torch.randn(20_000, 8, 1, generator=g, dtype=torch.float64)
        return (
            (x * field(x, torch.randn(20_000, 1, 1, generator=g, dtype=torch.float64)))
            .mean()
            .item()
        )

    assert growth(rest - 0.08) > 0 > growth(rest + 0.08)
