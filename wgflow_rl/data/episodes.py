"""Validated arrays of transitions, the common form of all offline data."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

LAYOUT = {
    "observations": (2, np.float32),
    "actions": (2, np.float32),
    "next_observations": (2, np.float32),
    "rewards": (1, np.float32),
    "masks": (1, np.float32),
    "terminals": (1, np.bool_),
}  # number of axes and dtype of every array


def row_bytes(widths: tuple[int, int]) -> int:
    """Bytes per transition, for (observation size, action size)."""
    observation, action = widths
    sizes = {"observations": observation, "next_observations": observation, "actions": action}
    return sum(sizes.get(name, 1) * np.dtype(dtype).itemsize for name, (_, dtype) in LAYOUT.items())


@dataclass(frozen=True)
class Episodes:
    """T transitions (s, a, r, s') of one environment, trajectory after trajectory.

    Conventions, the same for every source: `masks` is 0 on the transition that ends the task (no
    bootstrap beyond it); `terminals` is True on the last row of a trajectory (no chunk crosses it).
    Play data continue after a goal is reached, so a mask may be 0 in the middle of a trajectory.

    Raises:
        ValueError: The message names the array, the row and what was wanted.
    """

    observations: np.ndarray  # [T, S] float32
    actions: np.ndarray  # [T, A] float32 in [-1, 1]
    next_observations: np.ndarray  # [T, S] float32
    rewards: np.ndarray  # [T] float32
    masks: np.ndarray  # [T] float32, 0 or 1
    terminals: np.ndarray  # [T] bool
    env: str
    source: str = "memory"  # file it was read from, for messages

    def __post_init__(self) -> None:
        rows = len(self.observations)
        if rows == 0:
            raise ValueError(f"{self.source}: no transitions; wanted at least one")
        for name, (dims, dtype) in LAYOUT.items():
            array = getattr(self, name)
            if array.ndim != dims or len(array) != rows or array.dtype != dtype:
                raise ValueError(
                    f"{self.source}: {name} is {array.dtype} {array.shape}; wanted {np.dtype(dtype)} with {dims} axes "
                    f"and {rows} rows"
                )
            finite = np.isfinite(array.reshape(rows, -1)).all(1)
            if not finite.all():
                raise ValueError(
                    f"{self.source}: {name} is not finite in transition {np.argmin(finite)}; remove that trajectory"
                )
        if self.next_observations.shape != self.observations.shape:
            raise ValueError(
                f"{self.source}: next_observations is {self.next_observations.shape} but observations is "
                f"{self.observations.shape}; wanted the same shape"
            )
        outside = np.abs(self.actions).max(1) > 1 + 1e-5
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(
                f"{self.source}: actions leave [-1, 1] in transition {row} ({self.actions[row]}); rescale them to the "
                "environment's action space"
            )
        if not np.isin(self.masks, (0, 1)).all():
            raise ValueError(
                f"{self.source}: masks holds {np.unique(self.masks)[:5]}; wanted 0 (task ended) and 1"
            )
        if not self.terminals[-1]:
            raise ValueError(
                f"{self.source}: terminals is False in the last row; the last trajectory looks truncated"
            )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def resident(self) -> int:
        """Number of rows held in memory: all of them (cf. `Shards`)."""
        return len(self)

    @property
    def widths(self) -> tuple[int, int]:
        """(observation size, action size)."""
        return self.observations.shape[1], self.actions.shape[1]

    def parts(self) -> Iterator[Episodes]:
        """Iterate over the files of the data set: one."""
        yield self

    def head(self) -> Episodes:
        """Transitions from which observation statistics are computed: all of them."""
        return self

    def checksum(self, crc: int = 0) -> int:
        """CRC-32 of all arrays, continuing `crc`."""
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return int(self.terminals.sum())

    @property
    def successes(self) -> int:
        """Number of rows on which the task ends."""
        return int((self.masks == 0).sum())

    @property
    def lengths(self) -> np.ndarray:
        """Number of transitions of each trajectory, [trajectories] int."""
        return np.diff(np.flatnonzero(self.terminals), prepend=-1)

    @property
    def starts(self) -> np.ndarray:
        """First row of each trajectory, [trajectories] int."""
        return np.flatnonzero(self.terminals) + 1 - self.lengths

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each trajectory, [trajectories] float64."""
        return np.add.reduceat(self.rewards, self.starts, dtype=np.float64)

    def __add__(self, other: Episodes) -> Episodes:
        """The trajectories of both."""
        both = {name: [getattr(self, name), getattr(other, name)] for name in LAYOUT}
        return replace(self, **{name: np.concatenate(arrays) for name, arrays in both.items()})

    def subset(self, count: int, *, seed: int) -> Episodes:
        """Draw `count` trajectories without replacement, in their order.

        Raises:
            ValueError: If there are fewer.
        """
        if not 1 <= count <= self.trajectories:
            raise ValueError(
                f"{count} trajectories were asked for, but {self.source} has {self.trajectories} for training; give "
                f"--data-episodes from 1 to {self.trajectories}"
            )
        chosen = np.random.default_rng(seed).permutation(self.trajectories)[:count]
        trajectory = np.cumsum(self.terminals) - self.terminals  # of each row
        return self.rows(np.isin(trajectory, chosen))

    def rows(self, index: slice | np.ndarray) -> Episodes:
        """Some of the transitions, of whole trajectories."""
        return replace(self, **{name: getattr(self, name)[index] for name in LAYOUT})

    def with_history(self, count: int) -> Episodes:
        """Replace observations by the last `count` ones, oldest first; the first of a trajectory is repeated."""
        if count == 1:
            return self
        row, start = np.arange(len(self)), np.repeat(self.starts, self.lengths)
        obs = [self.observations[np.maximum(row - k, start)] for k in range(count - 1, -1, -1)]
        return replace(
            self,
            observations=np.concatenate(obs, 1),
            next_observations=np.concatenate([*obs[1:], self.next_observations], 1),
        )

    def summary(self) -> str:
        """One line of text: sizes, rewards, successes."""
        return (
            f"{self.env}: {len(self):,} transitions in {self.trajectories:,} trajectories, observations "
            f"{self.observations.shape[1]}, actions {self.actions.shape[1]}, reward {self.rewards.min():g} to "
            f"{self.rewards.max():g}, {self.successes:,} rows at the goal"
        )
