"""The ring against a list kept beside it, through any history: steps, episode ends, wrap-around, restarts, swaps."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.plain_rows import GAMMA, as_episodes, make_row, model_chunk, shards
from wgflow_rl.data.replay import FIELDS, Replay


class Ring(RuleBasedStateMachine):
    """Offline rows in memory; the list holds every row ever written, of which the ring should hold the newest.

    Online rows of several environments come in turns. Each has a list of its own.
    """

    @initialize(
        ends=st.lists(st.booleans(), min_size=1, max_size=8),
        room=st.integers(0, 12),
        lanes=st.integers(1, 4),
    )
    def begin(self, ends, room, lanes):
        self.lanes = lanes
        self.offline = [make_row(t, ended=end or t == len(ends) - 1) for t, end in enumerate(ends)]
        self.capacity = len(ends) + room
        self.replay = self.make()
        self.rows = list(self.offline)
        self.saved, self.segments = 0, []

    def make(self):
        return Replay(as_episodes(self.offline), capacity=self.capacity, lanes=self.lanes)

    def own(self, row):
        """The list that a row is in, and its place there: held rows of its lane, or of no lane, offline."""
        lane = lambda r: (int(r["obs"][0]) - len(self.offline)) % self.lanes
        online = lambda r: int(r["obs"][0]) >= len(self.offline)
        held = self.rows[-self.capacity :]
        own = [
            r
            for r in held
            if online(r) == online(row) and (not online(row) or lane(r) == lane(row))
        ]
        return own, next(i for i, r in enumerate(own) if r is row)

    @rule(kind=st.sampled_from(["on", "on", "on", "ended", "done", "mid"]), times=st.integers(1, 5))
    def step(self, kind, times):
        for _ in range(times):
            row = make_row(len(self.rows), ended=kind == "ended", done=kind == "done")
            if kind == "mid":  # play data: the task ended here, the trajectory did not
                row["masks"] = np.float32(0)
            self.rows.append(row)
            self.replay.add(**row)

    @rule()
    def save(self):
        """What a checkpoint does: write down the rows since the last one."""
        segment = self.replay.online_rows(self.saved)
        self.saved = self.replay.added
        self.segments.append((segment, self.saved - len(segment["rewards"])))

    @rule()
    def crash_and_resume(self):
        """Rows after the last checkpoint are lost; the rest is put together from its segments."""
        self.rows = self.rows[: len(self.offline) + self.saved]
        self.replay = self.make()
        for segment, first in self.segments:
            self.replay.load_online(segment, first)

    @invariant()
    def holds_the_newest_rows(self):
        held = self.rows[-self.capacity :]
        assert len(self.replay) == len(held)
        assert self.replay.added == len(self.rows) - len(self.offline)
        places = (self.replay.head - len(held) + torch.arange(len(held))) % self.capacity
        for name in FIELDS:
            np.testing.assert_array_equal(
                self.replay.rows[name][places], np.stack([r[name] for r in held])
            )

    @precondition(lambda self: len(self.rows) > 1)
    @rule(chunk=st.integers(1, 5), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]))
    def sample(self, chunk, seed, share):
        """Every chunk drawn is the list's own from its first row on, and online rows make up their share."""
        batch = self.replay.sample(
            8,
            chunk=chunk,
            gamma=GAMMA,
            generator=torch.Generator().manual_seed(seed),
            online_share=share,
        )
        for i, number in enumerate(batch.obs[:, 0].int()):
            expected = model_chunk(*self.own(self.rows[number]), chunk)
            for name, value in expected.items():
                if name == "next_actions":  # what follows the last valid one repeats it
                    value = np.concatenate([value, value[-1:].repeat(chunk - len(value), 0)])
                np.testing.assert_allclose(getattr(batch, name)[i], value, rtol=1e-5, err_msg=name)
        if self.replay.added:
            assert (batch.obs[: round(8 * share), 0] >= len(self.offline)).all()


class ShardedRing(RuleBasedStateMachine):
    """Offline rows that take turns, then an online phase: rows are a function of the step, whatever came between."""

    @initialize(
        files=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=2, max_size=5),
        spare=st.integers(0, 6),
    )
    def begin(self, files, spare):
        resident = min(max(map(sum, files)) + spare, sum(map(sum, files)))
        self.data = shards(files, resident=resident)
        self.step, self.online, self.saved = 0, [], ({}, 0, 0)
        self.replay = self.make()

    def make(self):
        return Replay(self.data, capacity=self.data.resident + 200, swap_every=2)

    def sample(self, replay):
        return replay.sample(
            8,
            chunk=3,
            gamma=GAMMA,
            generator=torch.Generator().manual_seed(self.step),
            step=self.step,
        )

    @precondition(lambda self: not self.online)
    @rule(updates=st.integers(1, 4))
    def train_offline(self, updates):
        for _ in range(updates):
            self.step += 1
            self.sample(self.replay)

    @precondition(lambda self: len(self.online) < 150)
    @rule(ended=st.booleans())
    def collect(self, ended):
        row = {
            "obs": np.float32([-1 - len(self.online), 0]),
            "actions": np.zeros(1, np.float32),
            "rewards": 0.0,
            "masks": 1.0,
            "terminals": ended,
            "next_obs": np.zeros(2, np.float32),
        }
        self.online.append(row)
        self.replay.add(**row)

    @rule()
    def save(self):
        self.saved = (self.replay.online_rows(), self.step, len(self.online))

    @precondition(lambda self: self.saved[0])
    @rule()
    def crash_and_resume(self):
        rows, self.step, count = self.saved
        self.online = self.online[:count]
        self.replay = self.make()
        self.replay.load_online(rows, 0)

    @precondition(lambda self: hasattr(self, "replay"))
    @rule()
    def matches_a_ring_that_only_ever_saw_this(self):
        other = self.make()
        for row in self.online:
            other.add(**row)
        assert all(
            torch.equal(a, b)
            for a, b in zip(self.sample(self.replay), self.sample(other), strict=True)
        )
        for name in FIELDS:
            assert torch.equal(
                self.replay.rows[name][: len(self.replay)], other.rows[name][: len(self.replay)]
            )


TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=40, stateful_step_count=30)
TestShardedRing = ShardedRing.TestCase
TestShardedRing.settings = settings(max_examples=30, stateful_step_count=20)
