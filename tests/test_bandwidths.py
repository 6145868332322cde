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


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("at least two", lambda: scott(torch.zeros(1, 2))),
        ("coincide", lambda: silverman(torch.zeros(5, 2))),
        ("one cloud", lambda: median_heuristic(torch.randn(2, 5, 2))),
        ("finite mass", lambda: leave_one_out(torch.randn(5, 2), kernel=lambda h: RationalQuadratic(h, 0.5))),
    ],
)  # fmt: skip
def test_bad_clouds_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()
