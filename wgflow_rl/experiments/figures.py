"""Learning curves of methods: mean over seeds with a 95 % bootstrap band."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl.experiments.results import RunGroup, bootstrap
from wgflow_rl.utils import pictures
from wgflow_rl.utils.pictures import INK, SHADE

# Okabe and Ito's colours, distinguishable with common forms of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
STYLES = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # of the first eight lines, the next eight, ...

Panels = Mapping[str, Mapping[str, RunGroup]]  # title of a panel -> label of a line -> its runs


def draw(
    panels: Panels,
    path: Path,
    *,
    title: str,
    dashed: Sequence[str] = (),
    online_only: bool = False,
) -> Path:
    """Write a PNG with the panels in rows of three; an empty panel is labelled "no runs".

    Args:
        panels: {title of a panel: {label of a line: runs}}.
        path: PNG to write.
        title: title of the figure.
        dashed: labels of dashed lines, those that are not in the paper.
        online_only: omit the offline phase and count steps from its end.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    titles = short_names(panels)
    short = short_names(label for lines in panels.values() for label in lines)
    panels = {
        titles[panel]: {short[label]: group for label, group in lines.items()}
        for panel, lines in panels.items()
    }
    dashed = [short[label] for label in dashed if label in short]
    names = list(short.values())
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_columns = 2 if columns < 3 else 4
    height = 2.4 * rows + 0.8 + 0.26 * math.ceil(len(names) / legend_columns)
    size = (4.4 if columns == 1 else 3.4) * columns, height
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (panel, lines) in zip(grid.flat, panels.items(), strict=False):
        for name, group in lines.items():
            turn, colour = divmod(names.index(name), len(COLOURS))
            line_style = "--" if name in dashed else STYLES[turn % len(STYLES)]
            look = {"color": COLOURS[colour], "linestyle": line_style}
            _line(axes, group, name, look, online_only)
        _decorate(axes, panel, lines, online_only)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if lines:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("success", fontsize=9, color=INK)
    for axes in grid[-1]:
        steps = "environment step, online" if online_only else "update, then environment step"
        axes.set_xlabel(steps, fontsize=8, color=INK)
    handles: dict[str, Any] = {}
    for axes in grid.flat[: len(panels)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=legend_columns,
        frameon=False,
        fontsize=8.5,
    )
    figure.suptitle(title if columns > 1 else title.replace(" (", "\n("), fontsize=10, color=INK)
    return pictures.save(figure, path)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name shortened, distinct from the others, its dollar signs escaped (to matplotlib, mathematics)."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        start = " ".join(name.split())[:80].replace("$", r"\$")
        numbered = (start if n == 1 else f"{start} ({n})" for n in itertools.count(1))
        found[name] = next(short for short in numbered if short not in found.values())
    return found


def _line(
    axes: Any, group: RunGroup, name: str, look: Mapping[str, Any], online_only: bool
) -> None:
    curve = group.curve()
    if online_only:
        start = group.offline or 0
        curve = curve[curve.index >= start].set_axis(curve.index[curve.index >= start] - start)
    if curve.empty:
        return
    steps, values = curve.index.to_numpy(), curve.to_numpy()
    marker = "o" if len(steps) <= 25 else ""
    axes.plot(steps, values.mean(1), **look, label=name, linewidth=1.6, marker=marker, markersize=3)
    stated = "low" in group.evaluations
    if stated or values.shape[1] > 1:
        rows: Any = group.evaluations[["low", "high"]].tail(len(steps)) if stated else None
        band = rows.to_numpy().T if stated else np.array([bootstrap(seeds) for seeds in values]).T
        axes.fill_between(steps, *band, color=look["color"], alpha=0.14, linewidth=0)


def _decorate(axes: Any, panel: str, lines: Mapping[str, RunGroup], online_only: bool) -> None:
    ends = {group.offline for group in lines.values() if group.offline}
    if not online_only and len(ends) == 1:
        axes.axvspan(0, ends.pop(), color=SHADE, zorder=-2, linewidth=0)
    if not lines:
        axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center", color="#9aa3ae")
        axes.set_xticks([])
    axes.set_title(panel, fontsize=9, color=INK)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.03, 1.04)
    pictures.plain(axes)
