"""Replay buffer of transitions, offline rows first, from which action chunks are sampled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wgflow_rl.data import Episodes
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.shards import Rotation, Shards

FIELDS = {
    "obs": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "masks": "masks",
    "terminals": "terminals",
    "next_obs": "next_observations",
}  # column -> attribute of `Episodes`


class Replay:
    """A ring buffer of `capacity` transitions.

    Chunks never cross the end of a trajectory or the write head. Online rows of `lanes`
    environments are interleaved: row j belongs to environment j mod `lanes`, and a chunk takes rows
    of one environment only.

    Args:
        data: offline data, the first rows. Of `Shards` that exceed memory, `data.resident` rows are
            held; the oldest shard is replaced by the next every `swap_every` updates, offline only.
        capacity: number of rows; the oldest is overwritten first. At least `data.resident`.
        device: torch device of the rows.
        seed: seed of the order of shards.
        swap_every: offline updates between replacements of a shard.
        lanes: number of environments with interleaved online rows.

    Raises:
        ValueError: If capacity is smaller than the resident offline data.
    """

    def __init__(
        self,
        data: Episodes | Shards,
        *,
        capacity: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        swap_every: int = 1000,
        lanes: int = 1,
    ):
        n = self.offline = data.resident
        if capacity < n:
            raise ValueError(
                f"capacity is {capacity} but the offline data has {n} rows; give at least {n}"
            )
        self.capacity, self.lanes = capacity, lanes
        self.added = 0  # number of online rows ever written
        obs, action = data.widths
        width = {"obs": (obs,), "next_obs": (obs,), "actions": (action,)}
        self.rows: dict[str, Tensor] = {
            name: torch.empty(
                (capacity, *width.get(name, ())),
                dtype=torch.bool if name == "terminals" else torch.float32,
                device=device,
            )
            for name in FIELDS
        }
        self.swap_every = swap_every
        if isinstance(data, Episodes):
            self.rotation = None
            self._write(data, 0)
        else:
            self.rotation = Rotation(data, seed=seed)  # rows are loaded by the first `sample`
        self._swaps = -1  # number of swaps made
        self._held = range(0)  # turns whose rows are in the ring

    def _write(self, episodes: Episodes, start: int) -> None:
        """Write offline rows at `start`, wrapping around after the last offline row."""
        until = self.offline - start
        for name, rows in self.rows.items():
            data = torch.as_tensor(getattr(episodes, FIELDS[name]))
            rows[start : start + len(data)][:until] = data[:until]
            rows[: max(0, len(data) - until)] = data[until:]
        # No chunk crosses the wrap-around: it counts as the end of a trajectory.
        self.rows["terminals"][self.offline - 1] = True

    def _make_resident(self, step: int) -> None:
        """Load the rows that are resident after `step` updates, whichever were before."""
        assert self.rotation is not None
        swaps = step // self.swap_every
        if swaps == self._swaps:
            return
        wanted = self.rotation.resident(swaps)
        forward = wanted.start <= self._held.stop <= wanted.stop
        for turn in range(self._held.stop if forward else wanted.start, wanted.stop):
            self._write(self.rotation.take(turn), self.rotation.row(turn))
        self._swaps, self._held = swaps, wanted
        if not self.added:
            self.rotation.read_ahead(wanted.stop)

    def __len__(self) -> int:
        return min(self.offline + self.added, self.capacity)

    @property
    def head(self) -> int:
        """Index of the row to be written next."""
        return (self.offline + self.added) % self.capacity

    def add(self, **row) -> None:
        """Append one transition: obs, actions, rewards, masks, terminals, next_obs.

        Raises:
            ValueError: If the ring is full and its offline rows are shards, which cannot be
                overwritten.
        """
        if self.rotation is not None and self.offline + self.added == self.capacity:
            raise ValueError(
                f"the ring of {self.capacity} rows is full, and offline rows of shards cannot be overwritten; "
                "give capacity for every online row"
            )
        for name in FIELDS:
            self.rows[name][self.head] = torch.as_tensor(row[name])
        self.added += 1
        if self.rotation is not None:
            self.rotation.stop()

    def sample(
        self,
        batch: int,
        *,
        chunk: int,
        gamma: float,
        generator: torch.Generator,
        horizon: int = 0,
        online_share: float = 0.0,
        step: int = 0,
    ) -> Batch:
        """Sample chunks, with first rows drawn uniformly with replacement.

        Args:
            batch: number of chunks B.
            chunk: chunk length h.
            gamma: discount factor per environment step.
            generator: source of the indices.
            horizon: actions T per row of the batch, the first h of which are the chunk; 0: h.
            online_share: fraction of the batch drawn from online rows only, once there are any; the
                rest is drawn from the whole ring. 0, the protocol of the paper: everything from the
                whole ring.
            step: number of offline updates so far, which with the seed determines the resident
                shards.

        Raises:
            ValueError: The message names a shard that cannot be read.
        """
        if self.rotation is not None:
            self._make_resident(step)
        where = {"generator": generator, "device": generator.device}
        start = torch.randint(len(self), (batch,), **where)
        online = min(self.added, self.capacity)
        if online and online_share > 0:
            fresh = round(batch * online_share)
            age = torch.randint(online, (fresh,), **where)
            start[:fresh] = (self.head - 1 - age) % self.capacity
        start = start.to(self.rows["obs"].device)
        return self.chunks(start, chunk=chunk, gamma=gamma, horizon=horizon)

    def chunks(self, start: Tensor, *, chunk: int, gamma: float, horizon: int = 0) -> Batch:
        """Chunks that start at the rows `start` [B], with R_h = sum_i gamma^i r_{t+i} as `returns`."""
        rows, horizon = self.rows, horizon or chunk
        # The actions from s_t and those from s_{t+h}.
        steps = torch.arange(chunk + horizon, device=start.device)
        # Offline rows are contiguous; online rows of one environment are `lanes` apart.
        stride = torch.where(self._age(start) < self.added, self.lanes, 1)
        index = (start[:, None] + stride[:, None] * steps) % self.capacity
        newest = self._age(index) < min(self.lanes, self.added)  # of each environment
        ends = rows["terminals"][index] | newest
        valid = torch.cat([ends.new_ones(len(start), 1), ~ends[:, :-1]], 1).cumprod(1)
        last = valid.sum(1, keepdim=True) - 1
        index = index.gather(1, torch.minimum(steps, last))  # repeat the last valid row
        valid = valid.to(rows["rewards"].dtype)
        executed = index[:, :chunk]
        alive = rows["masks"][executed].cumprod(1)  # 0 from the step that ends the task on
        before = torch.cat([alive.new_ones(len(start), 1), alive[:, :-1]], 1)
        powers = gamma ** steps[:chunk]
        returns = (rows["rewards"][executed] * valid[:, :chunk] * before * powers).sum(1)
        return Batch(
            obs=rows["obs"][start],
            actions=rows["actions"][index[:, :horizon]],
            valid=valid[:, :horizon],
            returns=returns,
            discount=gamma**chunk * alive[:, -1],
            next_obs=rows["next_obs"][executed[:, -1]],
            next_actions=rows["actions"][index[:, chunk:]],
            next_valid=valid[:, chunk:],
            complete=torch.maximum(valid[:, chunk - 1], 1 - alive[:, -1]),
        )

    def _age(self, index: Tensor) -> Tensor:
        """Number of rows written after those at `index`; online rows have an age < `added`."""
        return (self.head - 1 - index) % self.capacity

    def online_rows(self, since: int = 0) -> dict[str, Tensor]:
        """Copy the held online rows `since` to `added` - 1 to the CPU, oldest first.

        Raises:
            ValueError: If `since` is not in 0, ..., `added`.
        """
        if not 0 <= since <= self.added:
            raise ValueError(
                f"since is {since}; wanted 0 to {self.added}, the number of online rows written"
            )
        number = torch.arange(max(since, self.added - self.capacity), self.added)
        index = (self.offline + number) % self.capacity
        return {name: rows[index.to(rows.device)].cpu() for name, rows in self.rows.items()}

    def load_online(self, rows: Mapping[str, Tensor], first: int) -> None:
        """Restore a segment of `online_rows` whose first row has number `first`.

        Call it once per segment, in order. Segments that the ring no longer held may be left out.

        Raises:
            ValueError: If a row before `first` that the ring would still hold is missing, or a
                shape differs.
        """
        count = len(rows["rewards"])
        if first > self.added and count < self.capacity:
            raise ValueError(
                f"online rows {self.added} to {first - 1} are missing; load their segment first"
            )
        index = (self.offline + first + torch.arange(count)) % self.capacity
        for name, own in self.rows.items():
            if rows[name].shape[1:] != own.shape[1:] or len(rows[name]) != count:
                raise ValueError(
                    f"{name} is {tuple(rows[name].shape)}; wanted {count} rows of {tuple(own.shape[1:])}"
                )
            own[index.to(own.device)] = rows[name].to(own.device)
        self.added = first + count
