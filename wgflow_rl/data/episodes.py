"""Transitions laid end to end, checked once at the door: what every source of data becomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episodes:
    """T transitions (s, a, r, s') of one environment, trajectory after trajectory.

    Conventions, decided here for every source: `masks` is 0 on the transition that ends the task (no bootstrap beyond
    it), `terminals` is True on the last row of a trajectory (no chunk crosses it). Play data goes on after a goal, so a
    mask may be 0 in the middle of a trajectory.

    Raises: ValueError naming the array, the row and what was wanted.
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
        shapes = {
            "observations": 2,
            "actions": 2,
            "next_observations": 2,
            "rewards": 1,
            "masks": 1,
            "terminals": 1,
        }
        if rows == 0:
            raise ValueError(f"{self.source}: no transitions; wanted at least one")
        for name, dims in shapes.items():
            array = getattr(self, name)
            if array.ndim != dims or len(array) != rows:
                raise ValueError(
                    f"{self.source}: {name} is {array.shape}; wanted {dims} axes and {rows} rows"
                )
            if not np.isfinite(array).all():
                row = int(np.argmin(np.isfinite(array.reshape(rows, -1)).all(1)))
                raise ValueError(
                    f"{self.source}: {name} is not finite in row {row}; remove the trajectory, or make the file again"
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
                f"{self.source}: actions leave [-1, 1] in row {row} ({self.actions[row]}); rescale them to the "
                "environment's action space"
            )
        if not self.terminals[-1]:
            raise ValueError(f"{self.source}: the last row does not end a trajectory; the file looks cut")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return int(self.terminals.sum())

    @property
    def successes(self) -> int:
        """Number of rows on which the task ends."""
        return int((self.masks == 0).sum())

    def summary(self) -> str:
        """One line for people: sizes, returns, successes."""
        return (
            f"{self.env}: {len(self):,} transitions in {self.trajectories:,} trajectories, observations "
            f"{self.observations.shape[1]}, actions {self.actions.shape[1]}, reward {self.rewards.min():g} to "
            f"{self.rewards.max():g}, {self.successes:,} rows at the goal"
        )
