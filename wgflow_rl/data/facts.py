"""Statistics of a data set, read one file at a time: sizes, returns, successes, actions; and a picture of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wgflow_rl.data.episodes import Episodes
from wgflow_rl.utils.colours import BLUE, INK, RULE, SHADE
from wgflow_rl.utils.files import publish

EDGES = np.linspace(-1, 1, 42)  # 41 bins: action 0 is in the middle of one
DOTS = 4000  # states that are drawn


@dataclass(frozen=True)
class Facts:
    """A data set of T transitions in N trajectories, states of S numbers and actions of A."""

    lengths: np.ndarray  # [N] transitions
    returns: np.ndarray  # [N] undiscounted
    reached: np.ndarray  # [N] bool: the task ends somewhere in the trajectory
    successes: int  # rows on which the task ends
    low: np.ndarray  # [A] smallest action
    high: np.ndarray  # [A]
    counts: np.ndarray  # [A, 41] actions in the bins of EDGES
    states: np.ndarray  # [at most DOTS, S] of rows at equal distances
    goals: np.ndarray  # [at most DOTS, S] of rows on which the task ends

    def lines(self) -> list[str]:
        """For people."""
        low, high, returns = self.low, self.high, self.returns
        return [
            f"{self.lengths.sum():,} transitions in {len(self.lengths):,} trajectories of {self.lengths.min():,} to "
            f"{self.lengths.max():,}; observations {self.states.shape[1]}, actions {len(low)}",
            f"{self.successes:,} rows at the goal, in {self.reached.sum():,} of {len(self.lengths):,} trajectories; "
            f"returns {returns.min():g} to {returns.max():g}, mean {returns.mean():.1f}",
            "actions " + ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)),
        ]


def gather(parts: Iterable[Episodes]) -> Facts:
    """Count over the files of one data set; only one is in memory at a time. Raises: ValueError if there is none."""
    columns: dict[str, list] = {name: [] for name in Facts.__dataclass_fields__}
    for part in parts:
        starts = np.flatnonzero(part.terminals) + 1 - part.lengths
        done = part.masks == 0
        every = slice(None, None, max(1, len(part) // DOTS))
        found = {
            "lengths": part.lengths,
            "returns": part.returns,
            "reached": np.logical_or.reduceat(done, starts),
            "successes": part.successes,
            "low": part.actions.min(0),
            "high": part.actions.max(0),
            "counts": np.stack([np.histogram(column, EDGES)[0] for column in part.actions.T]),
            "states": part.observations[every],
            "goals": part.observations[done][:: max(1, part.successes // DOTS)],
        }
        for name, value in found.items():
            columns[name].append(value)
    if not columns["lengths"]:
        raise ValueError("no file to count; wanted at least one")
    join = {name: np.concatenate(columns[name]) for name in ("lengths", "returns", "reached")}
    dots = {name: np.concatenate(columns[name]) for name in ("states", "goals")}
    return Facts(
        **join,
        **{name: rows[:: -(-len(rows) // DOTS) or 1] for name, rows in dots.items()},
        successes=sum(columns["successes"]),
        low=np.min(columns["low"], 0),
        high=np.max(columns["high"], 0),
        counts=np.sum(columns["counts"], 0),
    )


def draw(facts: Facts, path: Path, title: str) -> None:
    """Four panels in a PNG: the first two numbers of the states, lengths, returns, and where actions lie."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,  # no pyplot: no global state, no window
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    (space, lengths), (returns, actions) = figure.subplots(2, 2)

    space.scatter(*facts.states[:, :2].T, s=2, color=INK, alpha=0.4, linewidth=0, label="states")
    if len(facts.goals):
        space.scatter(*facts.goals[:, :2].T, s=4, color=BLUE, linewidth=0, label="at the goal")
        space.legend(frameon=False, fontsize=8, markerscale=3)
    space.set(xlabel="observation 0", ylabel="observation 1")
    for axes, values, name, span in (
        (lengths, facts.lengths, "transitions of a trajectory", (0, 1.05 * facts.lengths.max())),
        (returns, facts.returns, "return of a trajectory", None),
    ):
        axes.hist(values, bins=40, range=span, color=BLUE)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set(xlabel=name, ylabel="trajectories")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    share = facts.counts / facts.counts.sum(1, keepdims=True)
    image = actions.imshow(
        share,
        aspect="auto",
        cmap="Blues",
        extent=(-1, 1, len(share) - 0.5, -0.5),
        interpolation="nearest",
    )
    actions.set(xlabel="action", ylabel="its coordinate", yticks=range(len(share)))
    rows = np.arange(len(share))
    for extreme in (facts.low, facts.high):
        actions.vlines(extreme, rows - 0.4, rows + 0.4, color=INK)
    figure.colorbar(image, ax=actions, label="share of rows in the bin")
    for axes in (space, lengths, returns, actions):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_facecolor(SHADE if axes is space else "white")
        axes.tick_params(colors=INK, labelsize=8)
    figure.suptitle(title, fontsize=11, color=INK)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
