"""Bandwidth rules: their formulas, their units, and the optimum that leave-one-out finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import clouds
from wgflow import (
    KDE,
    Gaussian,
    Laplace,
    RationalQuadratic,
    leave_one_out,
    median_heuristic,
    per_dimension,
    scott,
    silverman,
)

RULES = [scott, silverman, median_heuristic, leave_one_out]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12)
@given(c=clouds(batch=False, degenerate=False), unit=st.floats(0.01, 100.0))
def test_a_bandwidth_is_a_length(rule, c, unit):
    y = torch.cat([c.pos, c.neg])
    assert rule(unit * y) == pytest.approx(unit * rule(y), rel=1e-6)
    assert rule(y + 3) == pytest.approx(rule(y), rel=1e-6)


def test_the_rules_are_their_formulas():
    y = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    sigma = y.std().item()
    assert scott(y) == pytest.approx(sigma * 300**-0.2, rel=1e-5)
    assert silverman(y) == pytest.approx(sigma * (300 * 3 / 4) ** -0.2, rel=1e-5)
    assert median_heuristic(y) == pytest.approx(torch.pdist(y).median().item(), rel=1e-5)


@pytest.mark.parametrize("kernel", [Gaussian, Laplace])
def test_leave_one_out_finds_the_best_prediction(kernel):
    g = torch.Generator().manual_seed(0)
    y = torch.cat([torch.randn(40, 2, generator=g), 8 + torch.randn(40, 2, generator=g)]).double()
    best = leave_one_out(y, kernel=kernel)

    def predicted(h):
        return sum(
            KDE(torch.cat([y[:i], y[i + 1 :]]), kernel(h)).log_density(y[i : i + 1]).item()
            for i in range(len(y))
        )

    assert predicted(best) >= max(predicted(best * 1.05), predicted(best / 1.05)) - 1e-3
    assert best < 0.5 * scott(y)  # two far modes: Scott's rule is much too wide


def test_leave_one_out_finds_an_optimum_far_below_scotts_rule():
    """Two clusters 1e4 apart: their own optimum, as that of one of them alone up to the log of a share."""
    y = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = torch.cat([y, y.flip(0) + 1e4])
    assert leave_one_out(apart) == pytest.approx(leave_one_out(y), rel=0.03)
    assert leave_one_out(torch.cat([y, y + 1e8])) == pytest.approx(leave_one_out(y), rel=0.03)


def test_the_median_of_many_samples_is_that_of_all_pairs_in_any_order():
    """Interleaved clusters: a stride of the data would see one of them only."""
    g = torch.Generator().manual_seed(0)
    y = 0.01 * torch.randn(3000, 1, generator=g)
    y[1::2] += 10
    exact = torch.pdist(y).median().item()
    assert exact > 9
    for order in (y, y.sort(0).values, y[torch.randperm(3000, generator=g)]):
        assert median_heuristic(order) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12)
@given(c=clouds(batch=False, degenerate=False))
def test_weights_are_what_only_their_ratios_and_zeros_say(rule, c):
    y = torch.cat([c.pos, c.neg])
    w = torch.cat([c.wp, c.wn])
    ones = torch.ones_like(w)
    assert rule(y, weights=ones) == pytest.approx(rule(y), rel=1e-9)
    assert rule(y, weights=7 * w) == pytest.approx(rule(y, weights=w), rel=1e-6)
    more, none = torch.cat([y, y[:1] + 9]), torch.cat([w, torch.zeros(1).double()])
    assert rule(more, weights=none) == pytest.approx(rule(y, weights=w), rel=1e-9)


def test_scotts_rule_with_weights_is_that_of_scipy():
    from scipy.stats import gaussian_kde

    g = torch.Generator().manual_seed(0)
    y, w = torch.randn(50, 1, generator=g).double(), torch.rand(50, generator=g).double()
    expected = gaussian_kde(y[:, 0].numpy(), "scott", w.numpy())
    assert scott(y, weights=w) == pytest.approx(expected.covariance.item() ** 0.5)
    expected = gaussian_kde(y[:, 0].numpy(), "silverman", w.numpy())
    assert silverman(y, weights=w) == pytest.approx(expected.covariance.item() ** 0.5)


def test_the_weighted_median_is_that_of_repeated_pairs():
    """Whole weights: each pair of different samples as often as the product of its weights."""
    g = torch.Generator().manual_seed(0)
    y, w = torch.randn(9, 2, generator=g).double(), torch.randint(1, 4, (9,), generator=g)
    i, j = torch.triu_indices(9, 9, 1)
    gaps = (y[i] - y[j]).norm(dim=-1).repeat_interleave(w[i] * w[j])
    assert median_heuristic(y, weights=w.double()) == pytest.approx(gaps.median().item())
    drawn = median_heuristic(y, weights=w.double(), at_most=8)  # 32 random pairs
    assert (gaps - drawn).abs().min() < 1e-9


def test_per_dimension_with_weights_is_the_rule_on_weighted_standard_coordinates():
    g = torch.Generator().manual_seed(0)
    y, w = torch.randn(2, 30, 3, generator=g).double(), torch.rand(2, 30, generator=g).double()
    lengths = per_dimension(y, weights=w).length_scale
    for b in range(2):
        for d in range(3):
            one = scott(y[b, :, d : d + 1], weights=w[b])
            m = w[b].sum() ** 2 / w[b].square().sum()
            expected = one * m ** (1 / 5 - 1 / 7)  # Scott's exponent depends on the dimension
            assert lengths[b, 0, d].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("at least two", lambda: scott(torch.zeros(1, 2))),
        ("coincide", lambda: silverman(torch.zeros(5, 2))),
        ("half of the pairs", lambda: median_heuristic(torch.cat([torch.zeros(80, 2), torch.randn(20, 2)]))),
        ("has a duplicate", lambda: leave_one_out(torch.randn(5, 2).repeat(2, 1))),
        ("one sample alone", lambda: scott(torch.randn(3, 2), weights=torch.tensor([0.0, 1.0, 0.0]))),
        ("negative", lambda: scott(torch.randn(3, 2), weights=torch.tensor([0.0, 1.0, -1.0]))),
        ("weights are", lambda: scott(torch.randn(3, 2), weights=torch.ones(4))),
        ("one cloud", lambda: median_heuristic(torch.randn(2, 5, 2))),
        ("finite mass", lambda: leave_one_out(torch.randn(5, 2), kernel=lambda h: RationalQuadratic(h, 0.5))),
    ],
)  # fmt: skip
def test_bad_clouds_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()
