"""Conversion of arrays in the layouts of D4RL, OGBench and Minari to `Episodes`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wgflow_rl.data.episodes import Episodes

Bounds = tuple[np.ndarray, np.ndarray]  # lowest and highest action, [A] each


def from_rows(
    arrays: Mapping[str, np.ndarray],
    env: str,
    *,
    bounds: Bounds | None = None,
    source: str = "memory",
) -> Episodes:
    """Convert rows laid end to end, in the layout of D4RL or of OGBench's data with rewards.

    Without `next_observations`, the successor of a row is the next one. The last row of a
    trajectory has none: it is dropped, unless the task ends in it, where no successor is needed.

    Args:
        arrays: `observations` [T, S], `actions` [T, A], `rewards` [T], and one of
            `terminals` and `timeouts` [T] (D4RL: the task ends, the recording ends), or
            `masks` and `terminals` [T] (OGBench: 0 where the task ends, 1 where a trajectory ends).
            `next_observations` [T, S] is optional.
        env: name of the environment.
        bounds: lowest and highest action [A], scaled to -1 and 1; None: already in [-1, 1].
        source: file of the arrays, for messages.

    Raises:
        ValueError: The message names the array that is missing or invalid.
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    ends_of_tasks = "masks" if "masks" in held else "timeouts"
    one_per_row = ("rewards", "terminals", ends_of_tasks)
    for name in ("observations", "actions", *one_per_row):
        if name not in held:
            also = " or masks, which tell" if name == "timeouts" else ", which tells"
            why = f"{also} the end of a task from the end of a recording" * (name == ends_of_tasks)
            raise ValueError(f"{source} has no {name}{why}; it has {', '.join(held) or 'nothing'}")
    rows = len(held["observations"]) if held["observations"].ndim else 0
    if not rows:
        raise ValueError(f"{source}: observations hold no rows; wanted [T, S]")
    for name in ("actions", *one_per_row, "next_observations"):
        shape = held[name].shape if name in held else (rows,)
        if shape[:1] != (rows,):
            raise ValueError(
                f"{source}: {name} has {shape[0] if shape else 'no'} rows, but observations has {rows}"
            )
        if name in one_per_row and math.prod(shape) != rows:
            raise ValueError(
                f"{source}: {name} has shape {shape}; wanted one number per row, ({rows},)"
            )
    terminals = held["terminals"].reshape(rows) != 0
    if ends_of_tasks == "masks":
        done, ends = held["masks"].reshape(rows) == 0, terminals
    else:
        done, ends = terminals, terminals | (held["timeouts"].reshape(rows) != 0)
    ends[-1] = True  # a recording may stop at any row
    observations = held["observations"].astype(np.float32)
    keep = np.ones(rows, bool)
    if "next_observations" in held:
        after = held["next_observations"].astype(np.float32)
    else:
        after = np.concatenate([observations[1:], observations[-1:]])
        after[ends] = observations[ends]  # read where the task ends only, and multiplied by 0
        keep = ~ends | done
        ends = ends & keep | np.append(ends[1:] & ~keep[1:], False)
    return Episodes(
        observations=observations[keep],
        actions=_scale(held["actions"].reshape(rows, -1), bounds)[keep],
        next_observations=after[keep],
        rewards=held["rewards"].reshape(rows).astype(np.float32)[keep],
        masks=(~done).astype(np.float32)[keep],
        terminals=ends[keep],
        env=env,
        source=source,
    )


def from_trajectories(
    trajectories: Iterable[Any], env: str, *, bounds: Bounds | None = None, source: str = "memory"
) -> Episodes:
    """Convert trajectories with one observation more than actions, such as Minari's.

    Args:
        trajectories: objects with the attributes `observations` [T + 1, S], `actions` [T, A],
            `rewards` [T] and `terminations` [T], True where the task ends.
        env: name of the environment.
        bounds: lowest and highest action [A], scaled to -1 and 1; None: already in [-1, 1].
        source: name of the data set, for messages.

    Raises:
        ValueError: The message names the trajectory with arrays of different lengths.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for number, trajectory in enumerate(trajectories):
        seen, actions = np.asarray(trajectory.observations), np.asarray(trajectory.actions)
        rows = len(actions)
        arrays = {
            "observations": seen[:-1],
            "next_observations": seen[1:],
            "actions": actions.reshape(rows, -1),
            "rewards": np.asarray(trajectory.rewards),
            "masks": 1 - np.asarray(trajectory.terminations, np.float32),
            "terminals": np.arange(rows) == rows - 1,
        }
        for name, array in arrays.items():
            if len(array) != rows:
                raise ValueError(
                    f"{source}, trajectory {number}: {rows} actions but {len(seen)} observations, "
                    f"{len(arrays['rewards'])} rewards; wanted one observation more than actions"
                )
            parts.setdefault(name, []).append(array)
    if not parts:
        raise ValueError(f"{source} has no trajectories")
    joined = {name: np.concatenate(each) for name, each in parts.items()}
    return from_rows(joined, env, bounds=bounds, source=source)


def split(episodes: Episodes, share: float = 0.1) -> tuple[Episodes, Episodes]:
    """Hold out the last trajectories, about `share` of them and at least one: (training, validation).

    Raises:
        ValueError: Unless 0 < share < 1, or if there are fewer than two trajectories.
    """
    ends = np.flatnonzero(episodes.terminals) + 1
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; wanted a fraction in (0, 1)")
    if len(ends) < 2:
        raise ValueError(
            f"{episodes.source}: {len(ends)} trajectory; wanted at least two, one of them for validation"
        )
    held_out = min(max(1, round(share * len(ends))), len(ends) - 1)
    cut = ends[-held_out - 1]
    return episodes.rows(slice(None, cut)), episodes.rows(slice(cut, None))


def _scale(actions: np.ndarray, bounds: Bounds | None) -> np.ndarray:
    if bounds is None:
        return actions.astype(np.float32)
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    return (2 * (actions - low) / (high - low) - 1).astype(np.float32)
