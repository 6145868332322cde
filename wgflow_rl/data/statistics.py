"""Summary statistics of a data set, accumulated over its files, and a figure of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wgflow_rl.data.episodes import Episodes
from wgflow_rl.utils.pictures import BLUE, INK, SHADE, plain, save

EDGES = np.linspace(-1, 1, 42)  # 41 bins, one of them centred on 0
DOTS = 4000  # number of states in the figure


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set of N trajectories, with states of size S and actions of size A."""

    lengths: np.ndarray  # [N] transitions
    returns: np.ndarray  # [N] undiscounted
    reached: np.ndarray  # [N] bool, True if the task ends somewhere in the trajectory
    successes: int  # rows on which the task ends
    low: np.ndarray  # [A] smallest action
    high: np.ndarray  # [A]
    counts: np.ndarray  # [A, 41] histogram of each action coordinate over EDGES
    states: np.ndarray  # [at most DOTS, S] observations of equally spaced rows
    goals: np.ndarray  # [at most DOTS, S] observations of rows on which the task ends

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        low, high, returns = self.low, self.high, self.returns
        return [
            f"{self.lengths.sum():,} transitions in {len(self.lengths):,} trajectories of {self.lengths.min():,} to "
            f"{self.lengths.max():,}; observations {self.states.shape[1]}, actions {len(low)}",
            f"{self.successes:,} rows at the goal, in {self.reached.sum():,} of {len(self.lengths):,} trajectories; "
            f"returns {returns.min():g} to {returns.max():g}, mean {returns.mean():.1f}",
            "actions " + ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)),
        ]


def collect(parts: Iterable[Episodes]) -> Statistics:
    """Accumulate statistics over files, of which one is in memory at a time. Raises: ValueError if there is none."""
    columns: dict[str, list] = {name: [] for name in Statistics.__dataclass_fields__}
    for part in parts:
        done = part.masks == 0
        every = slice(None, None, max(1, len(part) // DOTS))
        found = {
            "lengths": part.lengths,
            "returns": part.returns,
            "reached": np.logical_or.reduceat(done, part.starts),
            "successes": part.successes,
            "low": part.actions.min(0),
            "high": part.actions.max(0),
            "counts": np.stack(
                [np.histogram(column.clip(-1, 1), EDGES)[0] for column in part.actions.T]
            ),
            "states": part.observations[every],
            "goals": part.observations[done][:: max(1, part.successes // DOTS)],
        }
        for name, value in found.items():
            columns[name].append(value)
    if not columns["lengths"]:
        raise ValueError("parts is empty; wanted at least one file")
    join = {name: np.concatenate(columns[name]) for name in ("lengths", "returns", "reached")}
    dots = {name: np.concatenate(columns[name]) for name in ("states", "goals")}
    return Statistics(
        **join,
        **{name: rows[:: -(-len(rows) // DOTS) or 1] for name, rows in dots.items()},
        successes=sum(columns["successes"]),
        low=np.min(columns["low"], 0),
        high=np.max(columns["high"], 0),
        counts=np.sum(columns["counts"], 0),
    )


def draw(statistics: Statistics, path: Path, title: str) -> None:
    """Write a PNG of states, lengths, returns and action histograms."""
    # No pyplot: it has global state and may open windows.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6), dpi=130, layout="constrained")
    (space, lengths), (returns, actions) = figure.subplots(2, 2)

    single = statistics.states.shape[1] == 1  # drawn on a line
    states, goals = (
        np.pad(rows[:, :2], ((0, 0), (0, int(single))))
        for rows in (statistics.states, statistics.goals)
    )
    space.scatter(*states.T, s=2, color=INK, alpha=0.4, linewidth=0, label="states")
    if len(goals):
        space.scatter(*goals.T, s=4, color=BLUE, linewidth=0, label="at the goal")
        space.legend(frameon=False, fontsize=8, markerscale=3)
    space.set(xlabel="observation 0", ylabel="" if single else "observation 1")
    longest = statistics.lengths.max()
    lengths.hist(statistics.lengths, bins=40, range=(0, 1.05 * longest), color=BLUE)
    lengths.set(xlabel="transitions of a trajectory", ylabel="trajectories")
    returns.hist(statistics.returns, bins=40, color=BLUE)
    returns.ticklabel_format(axis="x", useOffset=False)
    returns.set(xlabel="return of a trajectory", ylabel="trajectories")
    share = statistics.counts / statistics.counts.sum(1, keepdims=True)
    image = actions.imshow(
        share,
        aspect="auto",
        cmap="Blues",
        extent=(-1, 1, len(share) - 0.5, -0.5),
        interpolation="nearest",
    )
    actions.set(xlabel="action", ylabel="its coordinate", yticks=range(len(share)))
    rows = np.arange(len(share))
    for extreme in (statistics.low, statistics.high):
        actions.vlines(extreme, rows - 0.4, rows + 0.4, color=INK)
    figure.colorbar(image, ax=actions, label="share of rows in the bin")
    for axes in (space, lengths, returns, actions):
        plain(axes, grid="y" if axes in (lengths, returns) else None)
        axes.set_facecolor(SHADE if axes is space else "white")
    figure.suptitle(title, fontsize=11, color=INK)
    save(figure, path)
