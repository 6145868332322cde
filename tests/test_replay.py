"""Draws from the ring, and what it refuses. Its rows and chunks are those of a list in test_ring.py."""

import numpy as np
import pytest
import torch

from tests.plain_rows import GAMMA, as_episodes, make_row
from wgflow_rl.data.replay import Replay


def test_online_rows_are_copies_numbered_from_the_first_ever_written():
    replay = Replay(as_episodes([make_row(0, ended=True)]), capacity=4)
    for t in range(1, 8):
        replay.add(**make_row(t))
    assert replay.online_rows()["obs"][:, 0].tolist() == [4, 5, 6, 7]
    late = replay.online_rows(5)
    assert late["obs"][:, 0].tolist() == [6, 7]
    assert len(replay.online_rows(7)["rewards"]) == 0
    replay.add(**make_row(8))
    assert late["obs"][:, 0].tolist() == [6, 7]
    with pytest.raises(ValueError, match="since is 9; wanted 0 to 8"):
        replay.online_rows(9)


def test_a_segment_that_does_not_follow_is_refused():
    replay = Replay(as_episodes([make_row(0, ended=True)]), capacity=9)
    for t in range(1, 8):
        replay.add(**make_row(t))
    again = Replay(as_episodes([make_row(0, ended=True)]), capacity=9)
    with pytest.raises(ValueError, match="online rows 0 to 2 are missing"):
        again.load_online(replay.online_rows(3), 3)
    with pytest.raises(ValueError, match=r"actions is \(7, 2\); wanted 7 rows of \(1,\)"):
        again.load_online(replay.online_rows() | {"actions": torch.zeros(7, 2)}, 0)


def test_first_rows_are_drawn_uniformly_newest_row_included():
    replay = Replay(as_episodes([make_row(t, ended=t == 9) for t in range(10)]), capacity=20)
    for t in range(10, 16):
        replay.add(**make_row(t))
    batch = replay.sample(16_000, chunk=1, gamma=GAMMA, generator=torch.Generator().manual_seed(0))
    counts = np.bincount(batch.obs[:, 0].int().numpy(), minlength=16)
    assert len(counts) == 16
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 37.7  # 99.9 % quantile of chi^2 with 15 degrees of freedom


def test_a_share_of_the_batch_is_drawn_from_the_online_rows_alone():
    replay = Replay(as_episodes([make_row(t, ended=t == 99) for t in range(100)]), capacity=104)
    draw = lambda: replay.sample(
        8_000, chunk=1, gamma=GAMMA, generator=torch.Generator().manual_seed(0), online_share=0.5
    ).obs[:, 0]
    assert draw().max() < 100  # nothing online yet
    for t in range(100, 108):  # wraps: rows 0 to 3 are overwritten
        replay.add(**make_row(t))
    first = draw()
    assert (first[:4000] >= 100).all()
    counts = np.bincount(first[:4000].int().numpy() - 100, minlength=8)
    assert (
        (counts - 500) ** 2 / 500
    ).sum() < 24.4  # 99.9 % quantile of chi^2 with 7 degrees of freedom
    assert 0.05 < (first[4000:] >= 100).float().mean() < 0.11  # 8 of 104 rows


def test_a_ring_smaller_than_the_data_is_refused():
    with pytest.raises(ValueError, match="capacity is 3 but the offline data has 4 rows"):
        Replay(as_episodes([make_row(t, ended=t == 3) for t in range(4)]), capacity=3)


def test_with_lanes_first_rows_are_still_drawn_uniformly_and_chunks_follow_their_lane():
    replay = Replay(
        as_episodes([make_row(t, ended=t == 9) for t in range(10)]), capacity=20, lanes=3
    )
    for t in range(10, 17):  # lanes 10 13 16, 11 14, 12 15
        replay.add(**make_row(t))
    batch = replay.sample(17_000, chunk=2, gamma=GAMMA, generator=torch.Generator().manual_seed(0))
    first, second = batch.obs[:, 0].int(), (batch.actions[:, 1, 0] * 1000).round().int()
    counts = np.bincount(first.numpy(), minlength=17)
    assert (
        (counts - 1000) ** 2 / 1000
    ).sum() < 39.3  # 99.9 % quantile of chi^2 with 16 degrees of freedom
    follows = dict(zip(first.tolist(), second.tolist(), strict=True))
    assert follows == {t: t + 1 for t in range(9)} | {
        9: 9,
        10: 13,
        11: 14,
        12: 15,
        13: 16,
        14: 14,
        15: 15,
        16: 16,
    }
    assert follows.keys() - {
        t for t, ok in zip(first.tolist(), batch.valid[:, 1], strict=True) if ok
    } == {9, 14, 15, 16}
