"""Weights over candidates: tilts, top-K and the temperature that matches them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wgflow as wg
from tests.strategies import assert_close
from wgflow import Gaussian, drifting_field
from wgflow import targets as tg
from wgflow.testing import gaussians


@st.composite
def candidates(draw):
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lead = draw(st.sampled_from([(), (3,), (2, 2)]))
    return torch.randn(*lead, draw(st.integers(2, 20)), generator=g, dtype=torch.float64)


@given(candidates(), st.floats(0.01, 100.0), st.floats(-100.0, 100.0))
def test_a_tilt_is_a_distribution_that_ignores_a_baseline(values, alpha, baseline):
    w = tg.boltzmann_weights(values, alpha=alpha)
    assert_close(w.sum(-1), torch.ones_like(w[..., 0]))
    assert_close(tg.boltzmann_weights(values + baseline, alpha=alpha), w)
    assert_close(tg.boltzmann_weights(values * 3, alpha=alpha * 3), w)


@given(candidates())
def test_a_tilt_ends_in_the_best_and_in_all(values):
    assert_close(tg.boltzmann_weights(values, alpha=1e-9), tg.top_k_weights(values, k=1), atol=1e-6)
    n = values.shape[-1]
    assert_close(tg.boltzmann_weights(values, alpha=1e9), tg.top_k_weights(values, k=n), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "unit", "alpha"), [(torch.float16, 1e4, 0.1), (torch.float32, 1e30, 1e-20)]
)
def test_a_quotient_that_overflows_is_a_tilt_to_the_best(dtype, unit, alpha):
    values = (torch.tensor([1.0, 3.0, 2.0]) * unit).to(dtype)
    weights = tg.boltzmann_weights(values, alpha=alpha)
    assert_close(weights, tg.top_k_weights(values, k=1))


@given(candidates(), st.data())
def test_top_k_is_the_level_set_at_the_kth_value(values, data):
    k = data.draw(st.integers(1, values.shape[-1]))
    kth = values.sort(-1, descending=True).values[..., k - 1]
    assert_close(tg.top_k_weights(values, k=k), tg.level_set_weights(values, threshold=kth))
    assert_close(tg.effective_sample_size(tg.top_k_weights(values, k=k)), torch.full_like(kth, k))


@given(candidates(), st.data())
def test_total_variation_is_a_distance(values, data):
    a, b, c = (
        tg.boltzmann_weights(values, alpha=data.draw(st.floats(0.05, 10.0))) for _ in range(3)
    )
    tv = tg.total_variation
    assert bool(((tv(a, b) >= 0) & (tv(a, b) <= 1)).all())
    assert_close(tv(a, b), tv(b, a))
    assert bool((tv(a, c) <= tv(a, b) + tv(b, c) + 1e-12).all())
    assert_close(tv(a, b), (a - b).clamp_min(0).sum(-1))  # the largest gap over events


@given(candidates(), st.data())
def test_no_temperature_is_nearer_to_the_top_k_than_the_matched_one(values, data):
    k = data.draw(st.integers(1, values.shape[-1]))
    alpha, tv = tg.matched_temperature(values, k=k)
    target = tg.top_k_weights(values, k=k)
    assert_close(tg.total_variation(tg.boltzmann_weights(values, alpha=alpha), target), tv)
    for factor in (1e-2, 0.1, 0.5, 0.9, 1.1, 2.0, 10.0, 100.0):
        other = tg.total_variation(tg.boltzmann_weights(values, alpha=factor * alpha), target)
        assert bool((other >= tv - 1e-4).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_candidates_of_one_value_have_a_matched_temperature_too(dtype):
    """Every tilt of them is uniform, 1 - k/N from the top k."""
    alpha, tv = tg.matched_temperature(torch.full((3, 8), -5.0, dtype=dtype), k=2)
    assert bool((alpha > 0).all())
    assert_close(tv, torch.full((3,), 0.75, dtype=dtype))


@given(candidates(), st.floats(0.01, 100.0))
def test_the_matched_temperature_has_the_units_of_the_values(values, unit):
    alpha, tv = tg.matched_temperature(values, k=1 + values.shape[-1] // 2)
    scaled, same = tg.matched_temperature(unit * values, k=1 + values.shape[-1] // 2)
    assert_close(same, tv, atol=1e-4)
    assert_close(scaled / unit, alpha, rtol=0.05)


@given(st.floats(-2.0, 2.0), st.floats(0.3, 3.0), st.floats(0.2, 1.0))
def test_the_flow_to_the_soft_target_climbs_the_value_and_keeps_to_the_anchor(c, alpha, h):
    """π⁺ ∝ π_old exp(Q/α), Q = c a, π_old = N(0, 1): π⁺ = N(c/α, 1), by weights on candidates; and as h -> 0
    V/h² -> ∇Q/α + ∇log π_old - ∇log π."""
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(-1)
    log_old = -(grid[:, 0] ** 2) / 2
    weights = tg.boltzmann_weights(c * grid[:, 0] + alpha * log_old, alpha=alpha)
    policy = (torch.tensor([0.5]).double(), torch.tensor([[0.7]]).double())
    log_policy = -((grid[:, 0] - 0.5) ** 2) / (2 * 0.7)
    a = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1)
    V = drifting_field(
        a, grid, grid, kernel=Gaussian(h), pos_weights=weights, neg_weights=log_policy.exp()
    )
    target = (torch.tensor([c / alpha]).double(), torch.ones(1, 1).double())
    assert_close(V, gaussians.drift(a, target, policy, h=h), rtol=1e-7, atol=1e-7)
    ascent = c / alpha - a + (a - 0.5) / 0.7
    small = gaussians.drift(a, target, policy, h=1e-4) / 1e-8
    assert_close(small, ascent, rtol=1e-6, atol=1e-6)


def test_a_candidate_without_a_chance_changes_no_matched_temperature():
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ruled_out = torch.cat([values, torch.full((4, 1), -math.inf, dtype=torch.float64)], -1)
    for found, wanted in zip(
        tg.matched_temperature(ruled_out, k=2), tg.matched_temperature(values, k=2), strict=True
    ):
        assert_close(found, wanted)


def test_importance_weights_find_a_mean_under_another_law():
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(40_000, generator=g, dtype=torch.float64)
    w = tg.importance_weights(
        -0.5 * (x - 1) ** 2, -0.5 * (x / 2) ** 2 + 7.0
    )  # any constant: self-normalised
    assert (w @ x).item() == pytest.approx(1.0, abs=0.03)
    assert (w @ (x - 1) ** 2).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("alpha", lambda v: tg.boltzmann_weights(v, alpha=0.0)),
        ("k = 6", lambda v: tg.top_k_weights(v, k=6)),
        ("k = 0", lambda v: tg.matched_temperature(v, k=0)),
        ("infinity", lambda v: tg.matched_temperature(v.where(v < v.max(), math.inf), k=1)),
        ("threshold", lambda v: tg.level_set_weights(v, threshold=1e9)),
        ("NaN", lambda v: tg.boltzmann_weights(v * math.nan, alpha=1.0)),
        ("N >= 1", lambda v: tg.top_k_weights(v[:0], k=1)),
        ("same draws", lambda v: tg.importance_weights(v, v[:2])),
    ],
)  # fmt: skip
def test_bad_values_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.randn(5))


@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_candidates_that_are_ruled_out_have_no_weight_in_a_top_k(finite, k, dtype):
    values = torch.full((2, 6), -math.inf, dtype=dtype)
    values[:, :finite] = torch.randn(2, finite, generator=torch.Generator().manual_seed(k)).to(
        dtype
    )
    k = max(k, 1)
    w = wg.top_k_weights(values, k=k)
    assert (w[:, finite:] == 0).all()
    assert ((w > 0).sum(-1) == min(k, finite)).all()
    torch.testing.assert_close(w.sum(-1), torch.ones(2, dtype=dtype))
    with pytest.raises(ValueError, match="no weights follow"):
        wg.top_k_weights(torch.full((1, 3), -math.inf, dtype=dtype), k=k if k <= 3 else 3)


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(2, 3), torch.zeros(2, 3), torch.full((2, 3), math.nan), torch.ones(2, 3) / 2],
)
def test_a_total_variation_is_one_of_distributions(wrong):
    right = torch.rand(2, 3).softmax(-1)
    for pair in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match="do not sum to 1, or NaN"):
            wg.total_variation(*pair)
    assert (wg.total_variation(right, right.flip(-1)) >= 0).all()
