r"""Bandwidth selection: rules that choose the length scale of a kernel from samples.

Each rule takes one cloud y [M, D], treats its coordinates alike, and returns a number, a length in the units of y;
`per_dimension` applies a rule to coordinates of different units, and to batches. `Annealed` is a schedule for flows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Gaussian, Kernel, positive
from wgflow.reductions import check_clouds, kernel_shift_f64, require_unsharded

__all__ = ["Annealed", "leave_one_out", "median_heuristic", "per_dimension", "scott", "silverman"]


@checked
def scott(y: Tensor) -> float:
    """Scott's rule: sigma M^(-1/(D+4)), sigma the rms standard deviation. Too wide for several modes."""
    return _spread(y) * y.shape[-2] ** (-1 / (y.shape[-1] + 4))


@checked
def silverman(y: Tensor) -> float:
    """Silverman's rule: sigma (M (D+2)/4)^(-1/(D+4)), optimal if y is Gaussian. Too wide for several modes."""
    dim = y.shape[-1]
    return _spread(y) * (y.shape[-2] * (dim + 2) / 4) ** (-1 / (dim + 4))


@checked
def median_heuristic(y: Tensor, *, at_most: int = 2000) -> float:
    """The median distance between two samples, of every (M / at_most)-th sample if there are more."""
    _check_one_cloud(y)
    thinned = y.detach()[:: max(1, math.ceil(len(y) / at_most))].double()
    return _positive(torch.pdist(thinned).median().item())


@checked
def leave_one_out(
    y: Tensor, *, kernel: Callable[[float], Kernel] = Gaussian, rounds: int = 4
) -> float:
    r"""Leave-one-out maximum likelihood: argmax_h Σ_i log p_h^(-i)(y_i), the KDE of all samples but the i-th.

    Duplicated samples drive it to zero: each is then predicted perfectly by its copy. Searched on a logarithmic grid
    around Scott's rule, refined `rounds` times, to about 1 %.

    Args:
        y: [M, D].
        kernel: h -> Kernel, of finite mass.
        rounds: refinements of the grid.

    Returns:
        The length scale h.
    Raises:
        ValueError: On one point, or a kernel without a density.
    """
    require_unsharded("leave_one_out")
    _check_one_cloud(y)
    y = y.detach().double()
    start = scott(y)
    if kernel(start).log_norm(y.shape[-1]) is None:
        raise ValueError(
            f"{kernel(start)!r} has no finite mass in dimension {y.shape[-1]}, so it predicts nothing; use Gaussian."
        )

    def score(h: float) -> float:
        k = kernel(h)
        log_mass, _ = kernel_shift_f64(y, y, kernel=k, skip_self=True)
        return log_mass.sum().item() + len(y) * float(k.log_norm(y.shape[-1]) or 0.0)

    best, width = math.log(start), math.log(100.0)
    for _ in range(rounds):
        grid = [best + width * t / 5 for t in range(-5, 6)]
        best = max(grid, key=lambda log_h: score(math.exp(log_h)))
        width /= 5
    return math.exp(best)


@checked
def per_dimension(
    y: Tensor,
    *,
    rule: Callable[[Tensor], float] = scott,
    kernel: Callable[[Tensor], Kernel] = Gaussian,
) -> Kernel:
    r"""A kernel with a length scale per dimension and batch element: h_d = sigma_d rule(y / sigma).

    sigma_d is the standard deviation along d: Scott's and Silverman's rules per dimension, or any rule applied to
    standardised coordinates.

    Args:
        y: [..., M, D].
        rule: one cloud [M, D] -> a length.
        kernel: a tensor of length scales -> Kernel, such as the class `Gaussian`.

    Returns:
        The kernel with length scales [..., 1, D], in the dtype of y, without gradient.

    Raises:
        ValueError: On one point, or a dimension along which all samples coincide.
    """
    check_clouds(y, y, None, True, ("y", "y"))
    sigma = y.detach().double().std(-2, keepdim=True)
    if not bool(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(
            "y has a dimension without spread (or a number that is not finite), so no bandwidth fits it; leave that "
            "dimension out, or choose lengths by hand: Gaussian(lengths)."
        )
    standard = (y.detach().double() / sigma).reshape(-1, *y.shape[-2:])
    h = torch.tensor([rule(cloud) for cloud in standard], dtype=torch.float64, device=y.device)
    return kernel((sigma * h.view(*y.shape[:-2], 1, 1)).to(y.dtype))


@dataclass(frozen=True)
class Annealed:
    """Geometric schedule of a length scale: h(t) = start (end / start)^(t / over), then `end`.

    Wide kernels find distant mass, narrow ones detail. For `flow(..., schedule=Annealed(1.0, 0.1, over=5.0))`.

    Raises:
        ValueError: If one of the three is not positive.
    """

    start: float  # a length
    end: float  # a length
    over: float  # a time, after which h is constant

    def __post_init__(self):
        for name in ("start", "end", "over"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))

    def __call__(self, t: float) -> float:
        return self.start * (self.end / self.start) ** min(max(t / self.over, 0.0), 1.0)


def _check_one_cloud(y: Tensor) -> None:
    check_clouds(y, y, None, True, ("y", "y"))
    if y.dim() != 2:
        raise ValueError(
            f"y is {list(y.shape)}; wanted one cloud [M, D]; call the rule on each batch element, or use per_dimension."
        )
    if not bool(y.isfinite().all()):
        raise ValueError(
            "y holds NaN or infinity, so no bandwidth fits it; find it with torch.isfinite(y)."
        )


def _spread(y: Tensor) -> float:
    _check_one_cloud(y)
    return _positive(y.detach().double().var(-2).mean().sqrt().item())


def _positive(h: float) -> float:
    if not 0 < h < math.inf:
        raise ValueError(
            "all samples of y coincide (or are not finite), so no bandwidth fits them; choose one by hand."
        )
    return h
