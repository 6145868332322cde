"""Learning curves of several methods side by side: mean over seeds, 95 % bootstrap band, offline phase shaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wgflow_rl.experiments.results import Arm, bootstrap
from wgflow_rl.utils.colours import RULE, SHADE

# Okabe and Ito's colours, told apart with every common colour blindness; then the same again with another line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
STYLES = ("-", "--", ":")
INK = "#333a44"


def style(index: int) -> dict[str, str]:
    """Colour and line style of the index-th method."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
    }


def seeds_at(arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] that all seeds were evaluated at, and success there [N, T]."""
    shared = sorted(set.intersection(*(set(run.steps.tolist()) for run in arm.runs)))
    return np.array(shared), np.array([run.success[np.isin(run.steps, shared)] for run in arm.runs])


def average(arms: Sequence[Arm]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(steps, mean, band [2, T] or None) of the average over environments, each with its own seeds.

    The band is that of the mean over environments: seeds are drawn again within each of them.
    """
    parts = [seeds_at(arm) for arm in arms]
    shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in parts)))
    values = [success[:, np.isin(steps, shared)] for steps, success in parts]
    mean = np.mean([each.mean(0) for each in values], axis=0)
    if len(values) == 1 and len(values[0]) > 1:
        return np.array(shared), mean, np.array([bootstrap(column) for column in values[0].T]).T
    if min(map(len, values)) < 2:
        return np.array(shared), mean, None
    generator = np.random.default_rng(0)
    drawn = [each[generator.integers(len(each), size=(2000, len(each)))].mean(1) for each in values]
    return np.array(shared), mean, np.percentile(np.mean(drawn, axis=0), [2.5, 97.5], axis=0)


def draw(
    panels: Mapping[str, Mapping[str, Sequence[Arm]]],
    path: Path,
    *,
    title: str,
    offline: int | None,
) -> Path:
    """Write a PNG with one panel a title: {panel: {line: arms to average}}; the step that ends the offline phase."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,  # no pyplot: no global state, no window
    )
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_rows = math.ceil(len(names) / (2 if columns == 1 else 4))
    size = (4.4 if columns == 1 else 3.4) * columns, 2.7 * rows + 0.8 + 0.26 * legend_rows
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (panel, lines) in zip(grid.flat, panels.items(), strict=False):
        last = 0
        for name, arms in lines.items():
            steps, mean, band = average(arms)
            if not len(steps):
                continue
            last = max(last, int(steps[-1]))
            look = style(names.index(name))
            axes.plot(
                steps,
                mean,
                **look,
                label=name,
                linewidth=1.7,
                marker="o" if len(steps) <= 25 else "",
                markersize=3,
            )
            if band is not None:
                axes.fill_between(steps, *band, color=look["color"], alpha=0.14, linewidth=0)
        if offline:
            axes.axvspan(0, min(offline, last), color=SHADE, zorder=-2, linewidth=0)
            for text, left, right in (
                ("offline", 0, min(offline, last)),
                ("online", offline, last),
            ):
                if right - left > 0.12 * last:
                    axes.annotate(
                        text, ((left + right) / 2, 0.0), xycoords=("data", "axes fraction"), xytext=(0, 1),
                        textcoords="offset points", va="bottom", ha="center", fontsize=7.5, color="#6b7480",
                    )  # fmt: skip
        axes.set_title(panel, fontsize=9, color=INK)
        axes.set_xlim(0, max(last, 1) * 1.02)
        axes.set_ylim(-0.11, 1.04)  # the names of the phases stand below 0
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa3ae")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=8)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("success", fontsize=9, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("step (update, then environment step)", fontsize=8, color=INK)
    handles = {}
    for axes in grid.flat[: len(panels)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 if columns == 1 else 4,
        frameon=False, fontsize=8.5,
    )  # fmt: skip
    figure.suptitle(title if columns > 1 else title.replace(" (", "\n("), fontsize=10.5, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path
