r"""Plots of planar clouds, fields and flows. Needs matplotlib (`pip install wgflow[plots]`), imported on first use."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "STYLE",
    "animate",
    "axes",
    "density",
    "field",
    "panels",
    "samples",
    "streamlines",
    "trajectories",
]

# One per cloud; distinguishable in greyscale and with most kinds of colour blindness.
COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#5c5470")

# Unobtrusive defaults: `plt.style.use(plots.STYLE)`.
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 130,
}


class Snapshots(Protocol):
    """Snapshots of a flow, such as a `Trajectory`."""

    @property
    def points(self) -> Tensor: ...
    @property
    def times(self) -> Tensor: ...
    @property
    def end(self) -> Tensor: ...


def axes(width: float = 5.0, height: float = 5.0) -> Axes:
    """Square axes on a figure of their own, without a display. Save with `ax.figure.savefig(path)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set_aspect("equal")
    ax.tick_params(labelsize=8)
    return ax


def panels(
    *titles: str,
    columns: int | None = None,
    box: tuple[float, float, float, float] | None = None,
    size: float = 2.6,
) -> tuple[Figure, list[Axes]]:
    """A pyplot figure of panels without ticks, which a notebook displays.

    Args:
        titles: one per panel, row by row.
        columns: panels per row; None: all.
        box: (left, right, bottom, top), the limits of every panel.
        size: the width of a panel in inches.

    Returns:
        (figure, axes of the panels).

    Raises:
        ValueError: without a title.
    """
    from matplotlib import pyplot as plt

    if not titles:
        raise ValueError(
            'panels needs titles, one for each panel; pass "" for a panel without one.'
        )
    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    tall = 1.0 if box is None else (box[3] - box[2]) / (box[1] - box[0])
    inches = (size * columns, (size * tall + 0.4) * rows)
    figure, grid = plt.subplots(rows, columns, figsize=inches, layout="constrained", squeeze=False)
    drawn = list(grid.flat)
    for ax in drawn[len(titles) :]:
        ax.remove()
    for ax, title in zip(drawn, titles, strict=False):
        ax.set(aspect="equal", xticks=[], yticks=[], title=title)
        ax.spines[:].set(visible=True, color="0.8")
        if box is not None:
            ax.set(xlim=box[:2], ylim=box[2:])
    return figure, drawn[: len(titles)]


def samples(
    ax: Axes, cloud: Tensor, *, label: str | None = None, colour: str = COLOURS[0], size: float = 6
) -> Axes:
    """Scatter a cloud [N, 2]. Raises: ValueError when it is not planar."""
    _planar(cloud, "cloud")
    at = _drawable(cloud)
    ax.scatter(at[:, 0], at[:, 1], s=size, c=colour, alpha=0.6, linewidths=0, label=label, zorder=2)
    return ax


def field(
    ax: Axes,
    velocity: Callable[[Tensor], Tensor],
    *,
    box: tuple[float, float, float, float],
    grid: int = 24,
) -> Axes:
    """Draw arrows of equal length, coloured by log₁₀ of the speed, which may vary over orders of magnitude.

    Args:
        ax: where to draw.
        velocity: [G, 2] -> [G, 2].
        box: (left, right, bottom, top).
        grid: arrows per axis.
    """
    left, right, bottom, top = box
    xs, ys = torch.linspace(left, right, grid), torch.linspace(bottom, top, grid)
    at = torch.cartesian_prod(xs, ys)
    with torch.no_grad():
        v = _drawable(velocity(at))
    at = _drawable(at)
    speed = v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    arrows = v / speed
    colour = speed.log10().squeeze(-1).numpy()
    drawn = ax.quiver(
        at[:, 0],
        at[:, 1],
        arrows[:, 0],
        arrows[:, 1],
        colour,
        cmap="viridis",
        scale=1.3 * grid,
        zorder=1,
    )
    ax.figure.colorbar(drawn, ax=ax, shrink=0.7, label="log₁₀ |V|")
    return ax


def streamlines(
    ax: Axes,
    velocity: Callable[[Tensor], Tensor],
    *,
    box: tuple[float, float, float, float],
    grid: int = 40,
    colour: str = "0.3",
    density: float = 1.0,
) -> Axes:
    """Draw streamlines.

    Args:
        ax: where to draw.
        velocity: [G, 2] -> [G, 2].
        box: (left, right, bottom, top).
        grid: evaluations per axis.
        colour: of the lines.
        density: of the lines, as in matplotlib's `streamplot`.
    """
    left, right, bottom, top = box
    xs, ys = torch.linspace(left, right, grid), torch.linspace(bottom, top, grid)
    with torch.no_grad():
        v = _drawable(velocity(torch.cartesian_prod(xs, ys))).view(grid, grid, 2).transpose(0, 1)
    ax.streamplot(
        *(_drawable(t).numpy() for t in (xs, ys, v[..., 0], v[..., 1])),
        color=colour, density=density, linewidth=0.6, arrowsize=0.6, zorder=1,
    )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return ax


def density(
    ax: Axes,
    log_density: Callable[[Tensor], Tensor],
    *,
    box: tuple[float, float, float, float],
    grid: int = 160,
    levels: int = 12,
) -> Axes:
    """Draw filled contours of a density.

    Args:
        ax: where to draw.
        log_density: [G, 2] -> [G].
        box: (left, right, bottom, top).
        grid: evaluations per axis.
        levels: how many contours.
    """
    left, right, bottom, top = box
    xs, ys = torch.linspace(left, right, grid), torch.linspace(bottom, top, grid)
    with torch.no_grad():
        p = _drawable(log_density(torch.cartesian_prod(xs, ys))).exp().view(grid, grid).mT
    # Half of the colour map only: points in front of the peak stay visible.
    ax.contourf(
        _drawable(xs),
        _drawable(ys),
        p,
        levels=levels,
        cmap="Greys",
        vmin=0,
        vmax=2 * p.max().item(),
        zorder=0,
    )
    return ax


def animate(
    path: Snapshots,
    file: str | Path,
    *,
    data: Tensor | None = None,
    per_second: int = 15,
    size: float = 4.0,
) -> Path:
    """Write an animation of a planar flow, one frame per snapshot.

    Args:
        path: the flow.
        file: ends in .gif, or in .mp4 where ffmpeg is installed.
        data: [M, 2] points drawn in every frame, or None.
        per_second: frames per second.
        size: width and height in inches.

    Returns:
        The file written.

    Raises:
        ValueError: when the flow is not planar or the suffix is another.
    """
    from matplotlib.animation import FFMpegWriter, PillowWriter

    file = Path(file)
    writers = {".gif": PillowWriter, ".mp4": FFMpegWriter}
    if file.suffix not in writers:
        raise ValueError(
            f"{file.name} ends in {file.suffix!r}; wanted .gif, or .mp4 (which needs ffmpeg)."
        )
    _planar(path.end, "the trajectory")
    ax = axes(size, size)
    if data is not None:
        samples(ax, data, colour=COLOURS[2])
    everything = (
        path.points.flatten(0, 1) if data is None else torch.cat([path.points.flatten(0, 1), data])
    )
    (left, bottom), (right, top) = everything.amin(0).tolist(), everything.amax(0).tolist()
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    dots = ax.scatter([], [], s=6, c=COLOURS[1], linewidths=0, zorder=2)
    writer = writers[file.suffix](fps=per_second)
    with writer.saving(ax.figure, str(file), dpi=100):  # type: ignore[arg-type]
        for points, t in zip(path.points, path.times.tolist(), strict=True):
            dots.set_offsets(_drawable(points).numpy())
            ax.set_title(f"t = {t:.3g}", fontsize=9)
            writer.grab_frame()
    return file


def trajectories(ax: Axes, path: Snapshots, *, count: int = 100, colour: str = "0.35") -> Axes:
    """Draw the paths of the first `count` particles of a planar flow [K, N, 2]."""
    _planar(path.end, "the trajectory")
    lines = _drawable(path.points[:, :count])
    ax.plot(lines[..., 0], lines[..., 1], color=colour, linewidth=0.5, alpha=0.6, zorder=1)
    return ax


def _drawable(t: Tensor) -> Tensor:
    """The numbers of a tensor of any device and dtype, as matplotlib reads them."""
    return t.detach().cpu().double()


def _planar(cloud: Tensor, name: str) -> None:
    if cloud.dim() != 2 or cloud.shape[1] != 2:
        raise ValueError(
            f"{name} is {list(cloud.shape)}; wanted [N, 2]. Choose two coordinates: cloud[:, [0, 1]], or project."
        )
