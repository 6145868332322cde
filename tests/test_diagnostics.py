"""Diagnostics measure what their names say."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from wgflow_rl.agents import diagnostics


@given(st.integers(1, 6), st.integers(1, 6))
def test_where_k_candidates_are_worth_the_same_and_the_rest_nothing_the_effective_number_is_k(
    k, more
):
    score = torch.cat([torch.zeros(3, k), torch.full((3, more), -1000.0)], 1)
    log = diagnostics.candidates(score, k)
    assert abs(log["ess"] - k) < 1e-3
    assert log["matched_tv"] < 1e-3
    assert log["q_positives"] == 0


@given(st.integers(0, 1000), st.integers(2, 16))
def test_the_effective_number_is_between_one_and_all(seed, n):
    score = torch.randn(5, n, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-4 <= diagnostics.candidates(score, max(1, n // 4))["ess"] <= n + 1e-4
