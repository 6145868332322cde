"""Metrics against closed forms and against their definitions; toy targets against themselves."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.closed_forms import quantiles
from tests.strategies import assert_close, clouds
from wgflow import (
    KDE,
    MMD,
    Gaussian,
    energy_distance,
    kde_kl,
    mmd2,
    mode_coverage,
    mode_proportions,
    sliced_w2,
    spread_ratio,
    w2,
)
from wgflow.reductions import sharding
from wgflow.testing import gaussians, toy  # fmt: skip

TARGETS = {
    "eight": toy.eight_gaussians(),
    "unbalanced": toy.unbalanced_mixture(),
    "moons": toy.TwoMoons(),
    "roll": toy.SwissRoll(),
    "board": toy.Checkerboard(),
    "rings": toy.Rings(),
    "funnel": toy.Funnel(),
    "pinwheel": toy.Pinwheel(),
}


@given(clouds(batch=False, degenerate=False))
def test_energy_distance_is_its_u_statistic(c):
    pairs = lambda a: torch.pdist(a).mean()
    expected = 2 * torch.cdist(c.x, c.pos).mean() - pairs(c.x) - pairs(c.pos)
    assert_close(energy_distance(c.x, c.pos), expected)


@given(clouds(degenerate=False))
def test_mmd_is_its_u_statistic(c):
    k = Gaussian(c.h)
    off = lambda a: (
        (k.log(torch.cdist(a, a).square()).exp().sum((-2, -1)) - a.shape[-2])
        / (a.shape[-2] * (a.shape[-2] - 1))
    )
    cross = k.log(torch.cdist(c.x, c.pos).square()).exp().mean((-2, -1))
    assert_close(mmd2(c.x, c.pos, kernel=k), off(c.x) + off(c.pos) - 2 * cross)


@pytest.mark.parametrize("dim", [2, 8])
def test_differences_of_large_float32_clouds_are_summed_in_float64(dim):
    """Beyond 10^5 pairs sums may be float32, whose error is relative to a term and not to what is left of three."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 800, dim, generator=g)
    k = Gaussian(2.0)
    for of in (
        lambda a, b: mmd2(a, b, kernel=k),
        lambda a, b: kde_kl(a, b, kernel=k),
        lambda a, b: MMD(b, k).value(a),
    ):
        found, exact = of(x, y), of(x.double(), y.double())
        assert found.dtype == torch.float32
        assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_energy_distance_has_its_gaussian_closed_form():
    p, q = (
        (torch.tensor([m]).double(), torch.tensor([[v]]).double())
        for m, v in ((0.0, 1.0), (0.8, 2.0))
    )
    measured = energy_distance(quantiles(p, 2000), quantiles(q, 2000)).item()
    assert measured == pytest.approx(gaussians.energy_distance_1d((0.0, 1.0), (0.8, 2.0)), abs=5e-3)


@given(clouds(dim=1, batch=False))
def test_sliced_w2_is_exact_on_the_line(c):
    """One dimension, sizes that differ: scipy's transport between the same two step functions (by refinement)."""
    a, b = c.x.repeat_interleave(len(c.pos), 0), c.pos.repeat_interleave(len(c.x), 0)
    expected = (a.sort(0).values - b.sort(0).values).square().mean().sqrt()
    assert_close(sliced_w2(c.x, c.pos, projections=3, generator=c.generator), expected)


@given(clouds(batch=False), st.floats(0.1, 10.0))
def test_sliced_w2_of_a_translation_is_its_mean_projection(c, distance):
    step = torch.zeros(c.x.shape[-1], dtype=torch.float64)
    step[0] = distance
    measured = sliced_w2(c.x, c.x + step, projections=4000, generator=c.generator)
    assert measured.item() == pytest.approx(distance / math.sqrt(c.x.shape[-1]), rel=0.1)


def test_mode_proportions_count_the_nearest():
    centres = torch.tensor([[0.0], [1.0], [9.0]])
    x = torch.tensor([[0.1], [0.2], [0.9], [-5.0]])
    assert_close(mode_proportions(x, centres), torch.tensor([0.75, 0.25, 0.0]))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_repeats_itself_and_leaves_the_global_seed_alone(name):
    before = torch.get_rng_state()
    draws = [
        TARGETS[name].sample(100, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert draws[0].shape == (100, 2)
    assert draws[0].dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


KNOWN = ["eight", "unbalanced", "board", "rings", "funnel"]


@pytest.mark.parametrize("name", KNOWN)
def test_samples_follow_the_density(name):
    """The energy distance between samples and draws from the tabulated density is that of equal laws."""
    g = torch.Generator().manual_seed(0)
    target, n = TARGETS[name], 1500
    side = torch.linspace(-6, 6, 1201) if name == "funnel" else torch.linspace(-1.6, 1.6, 641)
    grid = torch.cartesian_prod(side, side)
    p = target.log_density(grid).exp()
    step = (side[1] - side[0]).item()
    assert (p.sum() * step**2).item() == pytest.approx(1.0, abs=0.02)
    tabulated = grid[torch.multinomial(p, n, replacement=True, generator=g)]
    tabulated = tabulated + step * (torch.rand(n, 2, generator=g) - 0.5)
    sample = target.sample(n, generator=g)
    assert energy_distance(sample, tabulated).abs() < 5e-3 * target.sample(n, generator=g).std()


@pytest.mark.parametrize("name", ["board", "rings", "funnel", "moons", "roll"])
def test_a_known_target_has_the_score_of_its_density(name):
    target, eps = TARGETS[name], 1e-5
    x = target.sample(30, generator=torch.Generator().manual_seed(0)).double()
    for d in range(2):
        e = eps * torch.eye(2, dtype=torch.float64)[d]
        along = (target.log_density(x + e) - target.log_density(x - e)) / (2 * eps)
        assert_close(target.score(x)[:, d], along, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["eight", "unbalanced"])
def test_a_mixture_knows_its_density_and_score(name):
    target, g = TARGETS[name], torch.Generator().manual_seed(0)
    x = target.sample(50, generator=g).requires_grad_()
    (score,) = torch.autograd.grad(target.log_density(x).sum(), x)
    assert_close(target.score(x).detach(), score, rtol=1e-3, atol=1e-3)
    side = torch.linspace(-2, 2, 401)
    mass = target.log_density(torch.cartesian_prod(side, side)).exp().sum() * 0.01**2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_a_smoothed_mixture_is_the_population_kde():
    """KDE of many samples -> the mixture convolved with the kernel: exact p_h for any Gaussian mixture."""
    target, g = toy.unbalanced_mixture(std=0.2), torch.Generator().manual_seed(0)
    x = target.sample(20, generator=g)
    estimate = KDE(target.sample(40_000, generator=g), Gaussian(0.3)).log_density(x)
    assert_close(estimate, target.smoothed(0.3).log_density(x), rtol=0, atol=0.05)


def test_mixture_samples_have_their_proportions():
    target, g = toy.unbalanced_mixture(), torch.Generator().manual_seed(0)
    found = mode_proportions(target.sample(20_000, generator=g), target.means)
    assert_close(found, target.weights, rtol=0, atol=0.015)
    radius = (target.sample(5000, generator=g) - target.means[:1]).norm(dim=-1)
    near = radius[radius < 0.5].numpy()  # the first component alone: Rayleigh distances
    assert stats.kstest(near, stats.rayleigh(scale=0.1).cdf).pvalue > 1e-3


def test_the_moons_are_two_and_alike():
    x = toy.TwoMoons(noise=0.0).sample(4000, generator=torch.Generator().manual_seed(0))
    distances = torch.stack(
        [(x - torch.tensor(c)).norm(dim=-1) for c in ([-0.5, -0.25], [0.5, 0.25])]
    )
    assert_close((distances - 1).abs().amin(0), torch.zeros(4000), atol=1e-5)
    assert ((distances[0] - 1).abs() < 1e-5).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_the_swiss_roll_is_a_spiral_in_the_unit_disc():
    x = toy.SwissRoll(noise=0.0).sample(2000, generator=torch.Generator().manual_seed(0))
    turns = x.norm(dim=-1) * 4.5 * math.pi
    spiral = torch.stack([turns.cos(), turns.sin()], -1) * x.norm(dim=-1, keepdim=True)
    assert_close(x, spiral, atol=1e-4, rtol=0)
    assert x.norm(dim=-1).max() <= 1 + 1e-6


def test_w2_is_the_best_pairing():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=g, dtype=torch.float64)
    y = torch.randn(6, 2, generator=g, dtype=torch.float64)
    best = min(
        (x - y[list(p)]).square().sum(-1).mean().sqrt().item()
        for p in itertools.permutations(range(6))
    )
    assert w2(x, y).item() == pytest.approx(best)
    assert w2(x, x[torch.randperm(6, generator=g)]).item() == 0
    assert w2(x, x + torch.tensor([3.0, 4.0])).item() == pytest.approx(5.0)
    assert sliced_w2(x, y, generator=g) <= w2(x, y) + 1e-9


def test_kde_kl_finds_the_smoothed_divergence():
    """Quantile clouds of two Gaussians: KL between the Gaussians widened by h."""
    p, q = (
        (torch.tensor([m]).double(), torch.tensor([[v]]).double())
        for m, v in ((0.0, 1.0), (1.0, 0.5))
    )
    h2 = 0.09 * torch.eye(1).double()
    grid = quantiles(q, 3000)
    found = kde_kl(grid, quantiles(p, 3000), kernel=Gaussian(0.3)).item()
    # Read at the points of q rather than of q_h, so the reference is an average over q too.
    log = [
        torch.distributions.Normal(m.item(), (v + h2).sqrt().item()).log_prob(grid[:, 0])
        for m, v in (q, p)
    ]
    assert found == pytest.approx((log[0] - log[1]).mean().item(), abs=5e-3)


def test_coverage_counts_the_modes_that_were_reached():
    centres = torch.tensor([[0.0], [1.0], [9.0]])
    assert mode_coverage(
        torch.tensor([[0.1], [0.95]]), centres, radius=0.2
    ).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("target", [toy.TwoMoons(noise=0.1), toy.SwissRoll(noise=0.1)])
def test_a_curve_has_the_density_of_its_samples(target, monkeypatch):
    """It integrates to 1, and samples find its entropy; four times the panels of its quadrature change nothing."""
    side = torch.linspace(-2, 2, 61, dtype=torch.float64)
    log_p = target.log_density(torch.cartesian_prod(side, side))
    area = (side[1] - side[0]).item() ** 2
    assert (log_p.exp().sum() * area).item() == pytest.approx(1.0, abs=1e-4)
    x = target.sample(2000, generator=torch.Generator().manual_seed(0)).double()
    found, entropy = target.log_density(x), (log_p.exp() * log_p).sum().item() * area
    assert found.mean().item() == pytest.approx(entropy, abs=4 * found.std().item() / 2000**0.5)
    ends = target._curve(torch.tensor([0.0, 1.0], dtype=torch.float64)).flatten(0, -2)
    x = torch.cat(
        [x[:50], *(ends + 0.1 * k for k in (-5, -1, 1, 5))]
    )  # where a midpoint rule errs most
    log_p, score = target.log_density(x), target.score(x)
    monkeypatch.setattr(toy, "PANELS", 4 * toy.PANELS)
    assert_close(target.log_density(x), log_p, rtol=0, atol=1e-10)
    assert_close(target.score(x), score, rtol=1e-10, atol=1e-9)
    with pytest.raises(ValueError, match="no density"):
        type(target)(noise=0.0).log_density(x)


def test_bad_mixtures_are_named():
    with pytest.raises(ValueError, match="wanted"):
        toy.GaussianMixture(torch.zeros(3, 2), torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="positive"):
        toy.GaussianMixture(torch.zeros(3, 2), torch.zeros(3), torch.ones(3))
    for bad in (
        lambda: toy.Checkerboard(noise=0.0),
        lambda: toy.Rings(radii=()),
        lambda: toy.Funnel(dim=1),
    ):
        with pytest.raises(ValueError, match="wanted"):
            bad()


def test_a_batch_of_clouds_has_no_single_sliced_distance():
    x = torch.zeros(3, 5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x is \[3, 5, 2\].*wanted one cloud each"):
        sliced_w2(x, x)


def test_modes_are_told_apart_wherever_they_are():
    """1000 widths from the origin, where the expanded square of float32 would mistake neighbours."""
    centres = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) + 1000
    x = centres.repeat(3, 1) + 0.05 * torch.randn(
        120, 2, generator=torch.Generator().manual_seed(2)
    )
    assert_close(
        mode_proportions(x, centres).double(),
        mode_proportions(x.double(), centres.double()),
        atol=1e-6,
    )
    for radius in (0.01, 0.05):
        found = mode_coverage(x, centres, radius=radius)
        assert_close(
            found.double(), mode_coverage(x.double(), centres.double(), radius=radius), atol=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_board_is_itself_turned_by_a_half_turn_however_far_one_is(dtype):
    board, x = (
        toy.Checkerboard(),
        torch.tensor([[1.4, -0.75], [1.6, 0.2], [5.0, -5.0]], dtype=dtype),
    )
    assert_close(board.log_density(x), board.log_density(-x), rtol=1e-5)
    assert_close(board.score(x), -board.score(-x), rtol=1e-5)
    # Far beyond a side, the score leads to the nearest square at the rate of the noise.
    assert board.score(x)[2, 0] < -0.99 * (5 - 1) / board.noise**2
    assert board.log_density(x).isfinite().all()


def test_metrics_of_shards_are_refused():
    x = torch.zeros(3, 2)
    with sharding.use(object()):  # type: ignore[arg-type]
        for metric in (
            w2,
            sliced_w2,
            mode_proportions,
            lambda x, y: mode_coverage(x, y, radius=1.0),
        ):
            with pytest.raises(ValueError, match="shards"):
                metric(x, x)


def test_several_kernels_mean_their_sum():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (5, 8))
    kernels = [Gaussian(0.5), Gaussian(2.0)]
    assert_close(mmd2(x, y, kernel=kernels), sum(mmd2(x, y, kernel=k) for k in kernels))


@pytest.mark.parametrize("copies", [1, 3], ids=["equal sizes", "unequal sizes"])
def test_sliced_w2_is_a_root_mean_square_over_directions(copies):
    """Two points L apart on a plane: E L² cos² = L² / 2, whose root is 11 % above E L |cos| = 2 L / π."""
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    found = sliced_w2(x, y.expand(copies, 2), projections=20_000, generator=g).item()
    assert found == pytest.approx(5 / math.sqrt(2), rel=0.01)


def test_a_point_at_the_radius_covers_its_mode():
    centres, x = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [7.0], [7.0]])
    assert mode_coverage(x, centres, radius=1.0) == 0.5


def test_the_spread_of_two_points_around_their_data():
    """E|x - x'| = 2 and E|x - y| = 1, without a gradient."""
    x = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    ratio = spread_ratio(x, torch.zeros(3, 1))
    assert ratio == 2
    assert not ratio.requires_grad


def test_kde_kl_of_three_points_is_its_definition():
    """Mean over x of log q_h - log p_h, each point left out of its own density of n - 1 others."""
    x, y = torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[0.5], [2.0]]).double()
    k = lambda a, b: (-((a - b.T) ** 2) / 2).exp()
    q = (k(x, x).sum(1) - 1) / 2
    p = k(x, y).mean(1)
    assert_close(kde_kl(x, y, kernel=Gaussian(1.0)), (q.log() - p.log()).mean())


WEIGHTED = {
    "energy_distance": energy_distance,
    "mmd2": lambda x, y, **w: mmd2(x, y, kernel=Gaussian(0.7), **w),
    "kde_kl": lambda x, y, **w: kde_kl(x, y, kernel=Gaussian(0.7), **w),
    "sliced_w2": lambda x, y, **w: sliced_w2(
        x, y, projections=20, generator=torch.Generator().manual_seed(0), **w
    ),
    "w2": w2,
}


@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=10)
@given(c=clouds(batch=False, degenerate=False))
def test_metrics_see_ratios_of_weights_only_and_no_sample_without_weight(name, c):
    if name == "w2":
        pytest.importorskip("ot")
    metric = WEIGHTED[name]
    value = metric(c.x, c.pos, x_weights=c.wn.new_ones(len(c.x)), y_weights=c.wp)
    assert_close(metric(c.x, c.pos, y_weights=3 * c.wp), value)
    far, none = torch.cat([c.pos, c.pos[:1] + 7]), torch.cat([c.wp, torch.zeros(1).double()])
    assert_close(metric(c.x, far, y_weights=none), value)
    assert_close(metric(c.x, c.pos, y_weights=torch.ones_like(c.wp)), metric(c.x, c.pos))
    if name != "kde_kl":
        assert_close(metric(c.pos, c.x, x_weights=c.wp), value)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_sample_without_weight_leaves_value_and_gradient_wherever_it_is(name):
    if name == "w2":
        pytest.importorskip("ot")
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (5, 7))
    x.requires_grad_()
    for seed in range(20):  # shares add up to 1 or, rounded, to less
        w = torch.rand(7, generator=g.manual_seed(seed), dtype=torch.float64)
        far = torch.cat([y, torch.full((1, 2), 1e18, dtype=torch.float64)])
        values = [
            WEIGHTED[name](x, cloud, y_weights=weights)
            for cloud, weights in ((y, w), (far, torch.cat([w, torch.zeros(1).double()])))
        ]
        assert_close(values[1], values[0])
        assert_close(*(torch.autograd.grad(value, x)[0] for value in values), atol=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e9])
@pytest.mark.parametrize("name", ["energy_distance", "sliced_w2", "w2"])
def test_distances_have_the_units_of_their_points(name, unit):
    if name == "w2":
        pytest.importorskip("ot")
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (9, 6))
    p = torch.rand(9, generator=g, dtype=torch.float64)
    metric = WEIGHTED[name]
    assert_close(metric(unit * x, unit * y, x_weights=p), unit * metric(x, y, x_weights=p))


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_modes_are_told_apart_in_any_unit(unit):
    centres = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    x = centres[[0, 1, 1, 3]] * unit
    shares = mode_proportions(x, centres * unit)
    assert_close(shares, torch.tensor([0.25, 0.5, 0.0, 0.25]))
    assert mode_coverage(x, centres * unit, radius=0.01 * unit) == 0.75


def test_the_gradient_of_an_energy_distance_keeps_its_digits_beside_a_distant_point():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (5, 7))
    y = torch.cat([y, torch.full((1, 2), 1e15, dtype=torch.float64)])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(energy_distance(x, y), x)
    unit = lambda a, b: torch.nn.functional.normalize(a[:, None] - b, dim=-1).sum(1)
    assert_close(gradient, 2 * (unit(x, y) / (5 * 8) - unit(x, x) / (5 * 4)))


@given(clouds(batch=False, degenerate=False))
def test_a_sample_of_double_weight_is_two_samples_to_a_distance_of_measures(c):
    """To W2 and the terms across clouds; a U-statistic has no pairs of a sample with its copy."""
    twice, w = torch.cat([c.pos, c.pos[:1]]), torch.ones_like(c.wp)
    w[0] = 2
    metric = WEIGHTED["sliced_w2"]
    assert_close(metric(c.x, c.pos, y_weights=w), metric(c.x, twice))


@given(clouds(batch=False, degenerate=False))
def test_the_weighted_energy_distance_is_its_u_statistic(c):
    def mean(a, p, b, q, skip):
        mass = p[:, None] * q * (1 - torch.eye(len(p), len(q)).double() if skip else 1)
        return (mass * torch.cdist(a, b)).sum() / mass.sum()

    w = c.rand(len(c.x)).exp()
    expected = 2 * mean(c.x, w, c.pos, c.wp, False)
    expected = expected - mean(c.x, w, c.x, w, True) - mean(c.pos, c.wp, c.pos, c.wp, True)
    assert_close(energy_distance(c.x, c.pos, x_weights=w, y_weights=c.wp), expected)


def test_exact_transport_of_unequal_clouds():
    """On a line it is the sliced distance; samples in n copies each are n times the weight."""
    pytest.importorskip("ot")
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 1, generator=g, dtype=torch.float64) for n in (7, 11))
    p = torch.rand(7, generator=g, dtype=torch.float64)
    assert_close(w2(x, y, x_weights=p), sliced_w2(x, y, x_weights=p, projections=1))
    a, b = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (4, 6))
    assert_close(w2(a, b), w2(a.repeat(3, 1), b.repeat(2, 1)))
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: w2(a, b), a)


@pytest.mark.parametrize("metric", [w2, sliced_w2, energy_distance])
def test_a_metric_has_no_gradient_where_it_vanishes(metric):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    settings = {"generator": torch.Generator().manual_seed(0)} if metric is sliced_w2 else {}
    (gradient,) = torch.autograd.grad(metric(x, x.detach().clone(), **settings), x)
    assert gradient.isfinite().all()
    if metric is not energy_distance:  # a U-statistic is not least at equal samples
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", WEIGHTED)
def test_metrics_are_blind_to_translations_in_float32(name):
    """The points lie on a grid that float32 resolves at the offset, so that nothing is rounded."""
    g = torch.Generator().manual_seed(0)
    x, y = ((torch.randn(8, 2, generator=g) * 8).round() / 8 for _ in range(2))
    metric = WEIGHTED[name]
    assert_close(metric(x + 2.0**20, y + 2.0**20), metric(x, y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 3])
def test_transport_between_gaussians_has_derivatives_where_covariances_are_round_or_equal(dim):
    eye = torch.eye(dim, dtype=torch.float64)
    zero = torch.zeros(dim, dtype=torch.float64)

    def symmetric(f):
        return lambda A: f(0.5 * (A + A.mT))

    cost = lambda A: gaussians.entropic_transport((zero, A), (zero, 2 * eye), sigma2=0.3)
    at = eye.clone().requires_grad_()
    assert torch.autograd.gradcheck(symmetric(cost), at)
    assert torch.autograd.gradgradcheck(symmetric(cost), at)
    (gradient,) = torch.autograd.grad(gaussians.w2((zero, at), (zero, eye)), at)
    assert gradient.isfinite().all()


def test_an_energy_distance_of_one_point_is_refused_by_name():
    with pytest.raises(ValueError, match=r"x is \[1, 2\].*at least 2"):
        energy_distance(torch.zeros(1, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="y_weights leave one point"):
        energy_distance(
            torch.randn(3, 2), torch.randn(3, 2), y_weights=torch.tensor([1.0, 0.0, 0.0])
        )
