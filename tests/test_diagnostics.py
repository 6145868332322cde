"""Diagnostics measure what their names say."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_agents import make_batch
from wgflow_rl.agents import diagnostics


def test_a_batch_without_a_whole_chunk_has_no_measure():
    """It says nothing about the policy, so it must not look like a divergence."""
    batch = make_batch(2)
    batch = batch._replace(valid=torch.cat([batch.valid[:, :-1], 0 * batch.valid[:, -1:]], 1))
    samples = torch.randn(len(batch.obs), 3, batch.actions.flatten(1).shape[1])
    log = diagnostics.compare_with_data(samples, batch)
    whole = diagnostics.compare_with_data(
        samples, batch._replace(valid=torch.ones_like(batch.valid))
    )
    assert log.keys() == whole.keys()
    assert all(math.isnan(value) for value in log.values())
    assert all(value.isfinite() for value in whole.values())


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
