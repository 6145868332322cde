"""One uniform ring of transitions, offline rows first, and the action chunks drawn from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wgflow_rl.data import Episodes
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.shards import Shards, Turns

FIELDS = {
    "obs": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "masks": "masks",
    "terminals": "terminals",
    "next_obs": "next_observations",
}  # columns, and what they are called in `Episodes`


class Replay:
    """A ring of `capacity` rows. Chunks never cross the end of a trajectory or the write head.

    Several environments write their online rows in turns: row number j belongs to lane j mod `lanes`, and a chunk
    stays in its lane.

    Args:
        data: offline data, the first rows. If `Shards` do not fit into memory, `data.resident` rows are held at a time,
            and the oldest file is replaced by the next one every `swap_every` updates. Online, nothing is replaced.
        capacity: number of rows held; the oldest is overwritten first. At least that of the resident offline data.
        device: where the rows are held.
        seed: determines the order in which the files are loaded.
        swap_every: updates between two replacements of a file.
        lanes: number of environments that write online rows in turns.

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
        self.added = 0  # online rows written since the start
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
            self.turns = None
            self._write(data, 0)
        else:
            self.turns = Turns(data, seed=seed)  # its rows come with the first sample
        self._swaps = -1  # replacements so far; -1 before the first load
        self._held = range(0)  # turns whose rows are held

    def _write(self, episodes: Episodes, start: int) -> None:
        """Write offline rows from `start` on, and after the last offline row from the first."""
        until = self.offline - start
        for name, rows in self.rows.items():
            data = torch.as_tensor(getattr(episodes, FIELDS[name]))
            rows[start : start + len(data)][:until] = data[:until]
            rows[: max(0, len(data) - until)] = data[until:]
        # No chunk leaves the offline rows: where they begin again, the trajectory counts as cut off.
        self.rows["terminals"][self.offline - 1] = True

    def _bring(self, step: int) -> None:
        """Load the rows that are resident after `step` updates, whatever was resident before."""
        assert self.turns is not None
        swaps = step // self.swap_every
        if swaps == self._swaps:
            return
        wanted = self.turns.resident(swaps)
        forward = wanted.start <= self._held.stop <= wanted.stop
        for turn in range(self._held.stop if forward else wanted.start, wanted.stop):
            self._write(self.turns.take(turn), self.turns.row(turn))
        self._swaps, self._held = swaps, wanted
        if not self.added:
            self.turns.read_ahead(wanted.stop)

    def __len__(self) -> int:
        return min(self.offline + self.added, self.capacity)

    @property
    def head(self) -> int:
        """The row that is written next."""
        return (self.offline + self.added) % self.capacity

    def add(self, **row) -> None:
        """Append one transition: obs, actions, rewards, masks, terminals, next_obs.

        Raises:
            ValueError: If the ring is full and its offline rows are those of shards.
        """
        if self.turns is not None and self.offline + self.added == self.capacity:
            raise ValueError(
                f"the ring of {self.capacity} rows is full; with shards, its capacity has to hold every online row too"
            )
        for name in FIELDS:
            self.rows[name][self.head] = torch.as_tensor(row[name])
        self.added += 1
        if self.turns is not None:
            self.turns.stop()

    def sample(
        self,
        batch: int,
        *,
        chunk: int,
        gamma: float,
        generator: torch.Generator,
        online_share: float = 0.0,
        step: int = 0,
    ) -> Batch:
        """`batch` chunks, their first rows drawn with replacement.

        Args:
            online_share: this fraction of the batch is drawn uniformly from the online rows alone, once there are any;
                the rest, and with 0 everything, uniformly from the whole ring (the protocol of the paper).
            step: offline updates so far: which files of `Shards` are resident depends on it and the seed alone.

        Raises:
            ValueError: If a file of `Shards` cannot be used; the message names it.
        """
        if self.turns is not None:
            self._bring(step)
        where = {"generator": generator, "device": generator.device}
        start = torch.randint(len(self), (batch,), **where)
        online = min(self.added, self.capacity)
        if online and online_share > 0:
            fresh = round(batch * online_share)
            age = torch.randint(online, (fresh,), **where)
            start[:fresh] = (self.head - 1 - age) % self.capacity
        return self.chunks(start.to(self.rows["obs"].device), chunk=chunk, gamma=gamma)

    def chunks(self, start: Tensor, *, chunk: int, gamma: float) -> Batch:
        """The chunks whose first rows are `start` [B], with R_h = sum_i gamma^i r_{t+i} as `returns` (DFP Eq. 1)."""
        rows = self.rows
        steps = torch.arange(2 * chunk, device=start.device)  # this chunk and the next
        # Offline rows follow each other; online rows of one environment are `lanes` apart.
        stride = torch.where(self._age(start) < self.added, self.lanes, 1)
        index = (start[:, None] + stride[:, None] * steps) % self.capacity
        newest = self._age(index) < min(self.lanes, self.added)  # of each lane
        ends = rows["terminals"][index] | newest
        valid = torch.cat([ends.new_ones(len(start), 1), ~ends[:, :-1]], 1).cumprod(1)
        last_valid = valid.sum(1, keepdim=True) - 1
        index = index.gather(1, torch.minimum(steps, last_valid))  # repeats the last valid row
        (index, after), steps = index.split(chunk, 1), steps[:chunk]
        valid, next_valid = valid.to(rows["rewards"].dtype).split(chunk, 1)
        alive = rows["masks"][index].cumprod(1)  # 0 from the step that ends the task on
        counted = valid * torch.cat([alive.new_ones(len(start), 1), alive[:, :-1]], 1)
        powers = gamma**steps
        return Batch(
            obs=rows["obs"][start],
            actions=rows["actions"][index],
            valid=valid,
            returns=(rows["rewards"][index] * counted * powers).sum(1),
            discount=gamma**chunk * alive[:, -1],
            next_obs=rows["next_obs"][index[:, -1]],
            next_actions=rows["actions"][after],
            next_valid=next_valid,
            complete=torch.maximum(valid[:, -1], 1 - alive[:, -1]),
        )

    def _age(self, index: Tensor) -> Tensor:
        """How many rows were written after those at `index`; online rows are those of age < `added`."""
        return (self.head - 1 - index) % self.capacity

    def online_rows(self, since: int = 0) -> dict[str, Tensor]:
        """Copies of the online rows numbered `since`, ..., `added` - 1 that are still held, oldest first, on the CPU.

        Raises:
            ValueError: If `since` is not in 0, ..., `added`.
        """
        if not 0 <= since <= self.added:
            raise ValueError(
                f"since is {since}; wanted 0 to {self.added}, the online rows written so far"
            )
        number = torch.arange(max(since, self.added - self.capacity), self.added)
        index = (self.offline + number) % self.capacity
        return {name: rows[index.to(rows.device)].cpu() for name, rows in self.rows.items()}

    def load_online(self, rows: Mapping[str, Tensor], first: int) -> None:
        """Restore a segment of `online_rows` whose first row has number `first`; call it segment after segment.

        The offline data and all segments together restore the whole ring. Rows that the ring no longer held need no
        segment.

        Raises:
            ValueError: If rows before `first` are missing that the ring would still hold, or a shape differs.
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
