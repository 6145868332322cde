"""Learning curve: success and episode length against steps, of one run or several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl.utils.pictures import BLUE, INK, SHADE, plain, save

Rows = Sequence[Mapping[str, Any]]


def draw_curve(*runs: Rows, path: str | Path, title: str = "") -> Path:
    """Draw the rows of one or several eval.csv (numbers or strings) as a PNG and return its path.

    Upper panel: the score, of environments that have one, or the success rate. Lower panel: mean episode length in
    environment steps. One run: the band is its 95 % interval. Several: thin lines are the runs, the thick line is their
    mean at the steps common to all.
    Steps count updates while offline and environment steps after that.

    Raises:
        ValueError: If a run has no row, or the runs have no step in common.
    """
    if not runs or not all(runs):
        raise ValueError("no evaluation to draw: eval.csv has no row yet.")
    if not set.intersection(*({row["step"] for row in rows} for rows in runs)):
        raise ValueError("no step has an evaluation of every run, so there is no mean to draw.")
    from matplotlib.figure import Figure  # no pyplot: no global state
    from matplotlib.ticker import EngFormatter, PercentFormatter

    figure = Figure(figsize=(7.2, 4.6), dpi=130, layout="constrained")
    success, length = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    scored = all(row.get("score") not in (None, "") for rows in runs for row in rows)
    name = "score" if scored else "success"
    for axes, column, colour in ((success, name, BLUE), (length, "length", INK)):
        lines = [(_column(rows, "step"), _column(rows, column)) for rows in runs]
        if len(runs) > 1:
            for steps, values in lines:
                axes.plot(steps, values, color=colour, linewidth=0.9, alpha=0.35)
            steps, values = _mean(lines)
        else:
            steps, values = lines[0]
        marker = "o" if len(steps) <= 40 else ""
        axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, linewidth=1.8)
    if len(runs) == 1:
        low, high = _column(runs[0], f"{name}_low"), _column(runs[0], f"{name}_high")
        success.fill_between(
            _column(runs[0], "step"), low, high, color=BLUE, alpha=0.18, linewidth=0
        )
    success.set_ylim(-0.03, 1.03)
    if name == "success":
        success.yaxis.set_major_formatter(PercentFormatter(1.0))
    success.set_ylabel(name)
    length.set_ylim(bottom=0)
    length.set_ylabel("episode length\n(steps)")
    length.set_xlabel("step")
    length.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (success, length):
        plain(axes)
        axes.margins(x=0.02)
    _shade_offline(runs, success, length)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save(figure, Path(path))


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    shared = sorted(set.intersection(*(set(steps) for steps, _ in lines)))
    return np.array(shared), np.array(
        [np.mean([v[list(s).index(at)] for s, v in lines]) for at in shared]
    )


def _shade_offline(runs: Sequence[Rows], success: Any, length: Any) -> None:
    offline = [float(row["step"]) for rows in runs for row in rows if row["phase"] == "offline"]
    if not offline:
        return
    first, last = (end(float(row["step"]) for rows in runs for row in rows) for end in (min, max))
    switch = max(offline)
    for axes in (success, length):
        axes.axvspan(first, switch, color=SHADE, zorder=-2, linewidth=0)
    for name, left, right in (("offline", first, switch), ("online", switch, last)):
        if right > left:
            place = {
                "xycoords": ("data", "axes fraction"),
                "textcoords": "offset points",
                "xytext": (0, 3),
            }
            success.annotate(
                name, ((left + right) / 2, 1.0), **place, ha="center", fontsize=9, color="#6b7480"
            )
