"""Style of the figures, and figures that are written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from wgflow_rl.utils.files import make_folder, replacing

BLUE, INK, SHADE, RULE = "#2563a8", "#333a44", "#eef0f3", "#d9dde3"


def plain(axes: Any, *, grid: Literal["both", "x", "y"] | None = "y") -> None:
    """Give axes the style of all figures: no frame above and on the right, thin lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=RULE, linewidth=0.6)


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and return its path."""
    make_folder(path.parent)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
