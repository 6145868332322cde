r"""Pictures of clouds, fields and flows in the plane. Needs matplotlib (`pip install wgflow[plots]`),
imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wgflow.flows import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes", "field", "samples", "trajectories"]

COLOURS = (
    "#1f6f8b",
    "#d1495b",
    "#edae49",
    "#66a182",
    "#5c5470",
)  # one a cloud, told apart in grey and by most eyes


def axes(width: float = 5.0, height: float = 5.0) -> Axes:
    """A square pair of axes on its own figure, drawn without a display. Save with `ax.figure.savefig(path)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set_aspect("equal")
    ax.tick_params(labelsize=8)
    return ax


def samples(
    ax: Axes, cloud: Tensor, *, label: str | None = None, colour: str = COLOURS[0], size: float = 6
) -> Axes:
    """Scatter a cloud [N, 2] in data units. Raises: ValueError when it is not planar."""
    _planar(cloud, "cloud")
    at = cloud.detach().cpu()
    ax.scatter(at[:, 0], at[:, 1], s=size, c=colour, alpha=0.6, linewidths=0, label=label, zorder=2)
    return ax


def field(
    ax: Axes, velocity: Callable[[Tensor], Tensor], *, box: tuple[float, float, float, float], grid: int = 24
) -> Axes:
    """Arrows of velocity([G, 2]) on a grid over box = (left, right, bottom, top). Equal lengths, colour shows speed.

    Lengths would hide the far field, which may be a thousand times the near one; speed is on a logarithmic
    colour scale.
    """
    left, right, bottom, top = box
    xs, ys = torch.linspace(left, right, grid), torch.linspace(bottom, top, grid)
    at = torch.cartesian_prod(xs, ys)
    with torch.no_grad():
        v = velocity(at)
    speed = v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    arrows = v / speed
    colour = speed.log10().squeeze(-1).numpy()
    drawn = ax.quiver(
        at[:, 0], at[:, 1], arrows[:, 0], arrows[:, 1], colour, cmap="viridis", scale=1.3 * grid, zorder=1
    )
    ax.figure.colorbar(drawn, ax=ax, shrink=0.7, label="log₁₀ |V|")
    return ax


def trajectories(ax: Axes, path: Trajectory, *, count: int = 100, colour: str = "0.35") -> Axes:
    """Lines of the first `count` particles of a planar flow [K, N, 2]; they end where the particles do."""
    _planar(path.end, "the trajectory")
    lines = path.points[:, :count].detach().cpu()
    ax.plot(lines[..., 0], lines[..., 1], color=colour, linewidth=0.5, alpha=0.6, zorder=1)
    return ax


def _planar(cloud: Tensor, name: str) -> None:
    if cloud.dim() != 2 or cloud.shape[1] != 2:
        raise ValueError(
            f"{name} is {list(cloud.shape)}; wanted [N, 2]. Choose two coordinates: cloud[:, [0, 1]], or project."
        )
