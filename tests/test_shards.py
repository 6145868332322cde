"""Files that take turns in memory: every row equally long, the same rows after a resume, mixed as if all were there."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.plain_rows import ROW, WIDTHS, part, shards
from wgflow_rl.data.replay import Replay
from wgflow_rl.data.shards import Rotation, Shards

file_sets = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=7)


@st.composite
def sharded(draw):
    files = draw(file_sets)
    sizes = [sum(lengths) for lengths in files]
    return shards(files, resident=draw(st.integers(max(sizes), sum(sizes))))


def numbers(replay):
    return replay.rows["obs"][: replay.offline, 0].tolist()


def sample(replay, step, batch=64, chunk=3, seed=0):
    return replay.sample(
        batch, chunk=chunk, gamma=0.9, generator=torch.Generator().manual_seed(seed), step=step
    )


def test_rows_in_memory_are_counted_in_bytes():
    episodes = part(0, [3])
    arrays = [a for a in vars(episodes).values() if isinstance(a, np.ndarray)]
    assert sum(a.nbytes for a in arrays) == ROW * 3


@given(sharded(), st.integers(0, 20), st.integers(0, 3))
def test_the_ring_holds_the_newest_rows_of_all_turns(data, swaps, seed):
    turns = Rotation(data, seed=seed)
    replay = Replay(data, capacity=data.resident, seed=seed, swap_every=1)
    if data.resident == data.rows:
        assert turns.resident(swaps) == range(len(data.files))
    sample(replay, swaps)
    stream = [
        row
        for turn in range(turns.resident(swaps).stop)
        for row in turns.take(turn).observations[:, 0]
    ]
    ring = dict(enumerate(stream))  # the position of a row in the stream
    newest = range(len(stream) - data.resident, len(stream))
    assert numbers(replay) == [ring[n] for n in sorted(newest, key=lambda n: n % data.resident)]


@given(st.integers(2, 9), st.data(), st.integers(0, 3))
def test_files_of_one_size_are_resident_equally_long(files, data, seed):
    resident = data.draw(st.integers(1, files - 1))
    turns = Rotation(
        shards([[4]] * files, resident=4 * resident + data.draw(st.integers(0, 3))), seed=seed
    )
    held = [turns.resident(k) for k in range(3 * files)]
    for turn in range(resident - 1, held[-1].start):  # those before end the first filling
        assert sum(turn in r for r in held) == resident
    order = [int(turns.take(t).observations[0, 0]) for t in range(3 * files)]
    for i in range(3):  # a pass is every file once
        assert sorted(order[i * files : (i + 1) * files]) == [4 * n for n in range(files)]


@given(sharded(), st.integers(0, 9), st.integers(1, 5))
def test_a_chunk_is_consecutive_rows_of_one_trajectory(data, swaps, chunk):
    replay = Replay(data, capacity=data.resident + 4, swap_every=1)
    sample(replay, swaps)
    for t in range(3):
        row = {
            "obs": np.float32([-9 + t, -9]),
            "actions": np.zeros(1, np.float32),
            "rewards": 0.0,
            "masks": 1.0,
        }
        replay.add(**row, terminals=False, next_obs=np.zeros(2, np.float32))
    start = torch.arange(len(replay))
    batch = replay.chunks(start, chunk=chunk, gamma=0.9)
    for i, first in enumerate(batch.obs):
        steps = int(batch.valid[i].sum())
        held = replay.rows["obs"][i : i + steps]
        assert held[:, 0].tolist() == [first[0] + k for k in range(steps)]
        assert (held[:, 1] == first[1]).all()


def test_every_row_of_the_set_is_drawn_equally_often():
    files = [[3, 5], [8], [2, 2, 4], [8], [1, 7], [8]]
    replay = Replay(shards(files, resident=17), capacity=16, swap_every=1)
    generator = torch.Generator().manual_seed(0)
    passes = 60
    counts = np.zeros(48)
    for step in range(6 * passes):
        batch = replay.sample(80, chunk=1, gamma=0.9, generator=generator, step=step)
        counts += np.bincount(batch.obs[:, 0].int().numpy(), minlength=48)
    expected = 80 * passes * 6 / 48
    # Each row is resident for the same number of steps but for the two ends of the run, and drawn uniformly then.
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 2 * 82.7  # 82.7: 99.9 % quantile of chi^2, 47 degrees
    assert np.abs(counts / expected - 1).max() < 0.15


def test_what_fits_into_memory_is_read_once_and_never_swapped(monkeypatch):
    data = shards([[4], [4], [4]], resident=12)
    read, reads = data.read, []
    monkeypatch.setattr(data, "read", lambda number: (reads.append(number), read(number))[1])
    replay = Replay(data, capacity=12, swap_every=1)
    sample(replay, 0)
    before = numbers(replay)
    sample(replay, 50)
    assert numbers(replay) == before
    assert sorted(before) == list(range(12))
    assert sorted(reads) == [0, 1, 2]


def test_the_order_belongs_to_the_seed():
    data = shards([[4]] * 8, resident=8)
    order = lambda seed: [Rotation(data, seed=seed).take(t).observations[0, 0] for t in range(16)]
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:8] != order(0)[8:]


def test_each_file_is_read_once_a_turn_and_none_ahead_of_the_online_phase(monkeypatch):
    data = shards([[4]] * 5, resident=8)
    read, reads = data.read, []
    monkeypatch.setattr(data, "read", lambda number: (reads.append(number), read(number))[1])
    replay = Replay(data, capacity=20, swap_every=10)
    for step in range(30):
        sample(replay, step)
    assert len(reads) <= 2 + 2 + 1  # filling, swaps, the next one
    row = {
        name: np.zeros(2 if "obs" in name else 1, np.float32)
        for name in ("obs", "actions", "next_obs")
    }
    replay.add(**row, rewards=0.0, masks=1.0, terminals=False)
    sample(replay, 30)
    replay.add(**row, rewards=0.0, masks=1.0, terminals=False)
    replay.rotation._thread.submit(int).result()  # what was being read is read
    ended = len(reads)
    for _ in range(3):
        sample(replay, 30)
    assert len(reads) == ended


def test_a_file_that_cannot_be_read_is_named_at_its_turn():
    good = shards([[4]] * 3, resident=4)

    def read(path):
        if path.name == "1.npz":
            raise ValueError(f"{path} cannot be read")
        return good.read(int(path.stem))

    bad = Shards(good.files, widths=WIDTHS, read=read, memory=1000 + 4 * ROW)
    replay = Replay(bad, capacity=4, swap_every=1)
    turn = next(t for t in range(3) if Rotation(good, seed=0).take(t).observations[0, 0] == 4)
    for step in range(turn):
        sample(replay, step)
    with pytest.raises(ValueError, match="1.npz cannot be read"):
        sample(replay, turn)


def test_a_file_that_changed_is_refused():
    data = shards([[4], [4]], resident=4)
    changed = Shards(
        data.files, widths=WIDTHS, read=lambda path: part(0, [5]), memory=1000 + 4 * ROW
    )
    with pytest.raises(ValueError, match="0.npz was changed"):
        changed.read(0)
    assert changed.checksum() == data.checksum() != shards([[4], [3]], resident=4).checksum()


def test_memory_that_holds_no_file_is_refused():
    with pytest.raises(ValueError, match=r"one of 6 transitions takes 1.17e-06 GB"):
        shards([[4], [6]], resident=5)


def test_a_ring_with_files_that_take_turns_does_not_wrap():
    replay = Replay(shards([[4]] * 3, resident=4), capacity=5)
    sample(replay, 0)
    row = {
        name: np.zeros(2 if "obs" in name else 1, np.float32)
        for name in ("obs", "actions", "next_obs")
    }
    replay.add(**row, rewards=0.0, masks=1.0, terminals=False)
    with pytest.raises(ValueError, match="ring of 5 rows is full"):
        replay.add(**row, rewards=0.0, masks=1.0, terminals=False)
