"""The picture of a run: success with its interval and episode length against steps, offline phase shaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLUE, GREY, INK = "#2563a8", "#eef0f3", "#333a44"


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> Path:
    """Draw the rows of an eval.csv (numbers or their text) into a PNG and return its path.

    Upper panel: success rate, band = its 95 % interval. Lower panel: mean episode length in environment steps.
    Steps count updates offline and environment steps online. Raises ValueError when there is no row.
    """
    if not rows:
        raise ValueError("no evaluation to draw: eval.csv has no row yet.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    steps = column("step")
    figure = Figure(figsize=(7.2, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    success, length = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    marker = "o" if len(steps) <= 40 else ""
    success.fill_between(
        steps, column("success_low"), column("success_high"), color=BLUE, alpha=0.18, linewidth=0
    )
    success.plot(steps, column("success"), color=BLUE, marker=marker, markersize=3.5, linewidth=1.8)
    success.set_ylim(-0.03, 1.03)
    success.yaxis.set_major_formatter(PercentFormatter(1.0))
    success.set_ylabel("success")
    length.plot(steps, column("length"), color=INK, marker=marker, markersize=3.5, linewidth=1.5)
    length.set_ylim(bottom=0)
    length.set_ylabel("episode length\n(steps)")
    length.set_xlabel("step")
    length.xaxis.set_major_formatter(EngFormatter(sep=""))

    offline = [float(row["step"]) for row in rows if row["phase"] == "offline"]
    for axes in (success, length):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa3ae")
        axes.grid(axis="y", color="#d9dde3", linewidth=0.6)
        axes.tick_params(colors=INK, labelsize=9)
        axes.margins(x=0.02)
        if offline:
            axes.axvspan(min(steps), max(offline), color=GREY, zorder=-2, linewidth=0)
    if offline:
        names = [("offline", min(steps), max(offline))]
        names += [("online", max(offline), max(steps))] if max(steps) > max(offline) else []
        for name, left, right in names:
            success.annotate(
                name, ((left + right) / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", fontsize=9, color="#6b7480",
            )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path
