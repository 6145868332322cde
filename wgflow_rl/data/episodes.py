"""Transitions laid end to end, checked once on construction: the common form of every source of data."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LAYOUT = {
    "observations": (2, np.float32),
    "actions": (2, np.float32),
    "next_observations": (2, np.float32),
    "rewards": (1, np.float32),
    "masks": (1, np.float32),
    "terminals": (1, np.bool_),
}  # axes and type of every array


def row_bytes(widths: tuple[int, int]) -> int:
    """Bytes of one transition with observations and actions of these sizes."""
    observation, action = widths
    sizes = {"observations": observation, "next_observations": observation, "actions": action}
    return sum(sizes.get(name, 1) * np.dtype(dtype).itemsize for name, (_, dtype) in LAYOUT.items())


@dataclass(frozen=True)
class Episodes:
    """T transitions (s, a, r, s') of one environment, trajectory after trajectory.

    Conventions, decided here for every source: `masks` is 0 on the transition that ends the task (no bootstrap beyond
    it), `terminals` is True on the last row of a trajectory (no chunk crosses it). Play data goes on after a goal, so a
    mask may be 0 in the middle of a trajectory.

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
    source: str = "memory"  # where it was read, for messages

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
                    f"{self.source}: {name} is not finite in transition {np.argmin(finite)}; remove its trajectory"
                )
        if self.next_observations.shape != self.observations.shape:
            raise ValueError(
                f"{self.source}: next_observations is {self.next_observations.shape} but observations is "
                f"{self.observations.shape}; wanted the same"
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
                f"{self.source}: terminals is False in the last row; a trajectory looks cut"
            )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def resident(self) -> int:
        """Rows that are in memory at a time: all."""
        return len(self)

    @property
    def widths(self) -> tuple[int, int]:
        """Sizes of an observation and of an action."""
        return self.observations.shape[1], self.actions.shape[1]

    def parts(self) -> Iterator[Episodes]:
        """All transitions, as much at a time as one file holds."""
        yield self

    def head(self) -> Episodes:
        """The transitions to learn scales from: all."""
        return self

    def checksum(self, crc: int = 0) -> int:
        """Of every array, continuing `crc`."""
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
        """Transitions of each trajectory, [trajectories] int."""
        return np.diff(np.flatnonzero(self.terminals), prepend=-1)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted sum of rewards of each trajectory, [trajectories] float64."""
        starts = np.flatnonzero(self.terminals) + 1 - self.lengths
        return np.add.reduceat(self.rewards, starts, dtype=np.float64)

    def summary(self) -> str:
        """One line for people: sizes, returns, successes."""
        return (
            f"{self.env}: {len(self):,} transitions in {self.trajectories:,} trajectories, observations "
            f"{self.observations.shape[1]}, actions {self.actions.shape[1]}, reward {self.rewards.min():g} to "
            f"{self.rewards.max():g}, {self.successes:,} rows at the goal"
        )
