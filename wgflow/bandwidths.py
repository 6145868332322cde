r"""Rules that choose a bandwidth from the data: each returns a plain number, a length in the units of the samples.

All take one cloud y [M, D] and treat its coordinates alike; `per_dimension` applies any of them to coordinates of
different units, and to batches. `Annealed` lets a bandwidth shrink along a flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.kernels import Gaussian, Kernel, check_bandwidth
from wgflow.stretched import Stretched
from wgflow.sums import check_clouds, double_shift, only_whole

__all__ = ["Annealed", "leave_one_out", "median_heuristic", "per_dimension", "scott", "silverman"]


@checked
def scott(y: Tensor) -> float:
    """sigma M^(-1/(D+4)), sigma the rms standard deviation: right in rate for one Gaussian, wide for several modes."""
    return _spread(y) * y.shape[-2] ** (-1 / (y.shape[-1] + 4))


@checked
def silverman(y: Tensor) -> float:
    """sigma (M (D+2)/4)^(-1/(D+4)): the bandwidth of least integrated error were y Gaussian; wide for several modes."""
    dim = y.shape[-1]
    return _spread(y) * (y.shape[-2] * (dim + 2) / 4) ** (-1 / (dim + 4))


@checked
def median_heuristic(y: Tensor, *, at_most: int = 2000) -> float:
    """The median distance between two samples; every (M / at_most)-th sample is used where there are more."""
    _one_cloud(y)
    thinned = y.detach()[:: max(1, math.ceil(len(y) / at_most))].double()
    return _positive(torch.pdist(thinned).median().item())


@checked
def leave_one_out(
    y: Tensor, *, kernel: Callable[[float], Kernel] = Gaussian, rounds: int = 4
) -> float:
    r"""The bandwidth that predicts each sample best from the others: argmax_h Σ_i log p_h^(-i)(y_i).

    Duplicated samples drive it to zero: each is then predicted perfectly by its copy. Searched on a logarithmic
    grid around Scott's, refined `rounds` times, to about 1 %.

    Args: y: [M, D]; kernel: h -> Kernel, one with finite mass. Returns: h.
    Raises: ValueError on clouds of one point, kernels without density.
    """
    only_whole("leave_one_out")
    _one_cloud(y)
    y = y.detach().double()
    start = scott(y)
    if kernel(start).log_norm(y.shape[-1]) is None:
        raise ValueError(
            f"{kernel(start)!r} has no finite mass in dimension {y.shape[-1]}, so it predicts nothing; use Gaussian."
        )

    def score(h: float) -> float:
        k = kernel(h)
        log_mass, _ = double_shift(y, y, kernel=k, skip_self=True)
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
    kernel: Callable[[float], Kernel] = Gaussian,
) -> Stretched:
    r"""A bandwidth for each dimension and batch element: h_d = sigma_d rule(y / sigma), sigma_d the deviation along d.

    Scott's and Silverman's rules per dimension; any other rule for standardised coordinates, in their own units again.

    Args: y: [..., M, D]; rule: one cloud -> a bandwidth; kernel: of bandwidth 1, to be stretched.
    Returns: `Stretched(kernel(1.0), lengths)`, lengths [..., 1, D] without gradient, in the dtype of y.
    Raises: ValueError on one point, or a dimension along which all samples coincide.
    """
    check_clouds(y, y, None, True, ("y", "y"))
    sigma = y.detach().double().std(-2, keepdim=True)
    if not bool(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(
            "y has a dimension without spread (or a number that is not finite), so no bandwidth fits it; leave that "
            "dimension out, or choose lengths by hand: Stretched(Gaussian(1.0), lengths)."
        )
    standard = (
        (y.detach().double() / sigma).flatten(0, -3)
        if y.dim() > 2
        else (y.detach().double() / sigma)[None]
    )
    h = torch.tensor([rule(cloud) for cloud in standard], dtype=torch.float64, device=y.device)
    return Stretched(kernel(1.0), (sigma * h.view(*y.shape[:-2], 1, 1)).to(y.dtype))


@checked_constructor
@dataclass(frozen=True)
class Annealed:
    """h(t) = start (end / start)^(t / over), then `end`: a bandwidth that shrinks (or grows) geometrically with time.

    Wide kernels find far mass, narrow ones detail. A schedule for `flow(..., schedule=Annealed(1.0, 0.1, over=5.0))`.
    Raises: ValueError unless all three are positive.
    """

    start: float  # a length
    end: float  # a length
    over: float  # a time, after which the bandwidth rests

    def __post_init__(self):
        check_bandwidth("start", self.start)
        check_bandwidth("end", self.end)
        if not 0 < self.over < math.inf:
            raise ValueError(
                f"over = {self.over!r}; wanted a positive time, for instance dt * steps."
            )

    def __call__(self, t: float) -> float:
        return self.start * (self.end / self.start) ** min(max(t / self.over, 0.0), 1.0)


def _one_cloud(y: Tensor) -> None:
    check_clouds(y, y, None, True, ("y", "y"))
    if y.dim() != 2:
        raise ValueError(
            f"y is {list(y.shape)}; a rule wants one cloud [M, D]: call it on each batch element."
        )
    if not bool(y.isfinite().all()):
        raise ValueError(
            "y holds NaN or infinity, so no bandwidth fits it; find it with torch.isfinite(y)."
        )


def _spread(y: Tensor) -> float:
    _one_cloud(y)
    return _positive(y.detach().double().var(-2).mean().sqrt().item())


def _positive(h: float) -> float:
    if not 0 < h < math.inf:
        raise ValueError(
            "all samples of y coincide (or are not finite), so no bandwidth fits them; choose one by hand."
        )
    return h
