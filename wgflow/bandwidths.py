r"""Rules that choose a bandwidth from the data: each returns a plain number, a length in the units of the samples.

All take one cloud y [M, D] and treat its coordinates alike: standardise coordinates of different units first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wgflow.kernels import Gaussian, Kernel
from wgflow.sums import check_clouds, double_shift

__all__ = ["leave_one_out", "median_heuristic", "scott", "silverman"]


def scott(y: Tensor) -> float:
    """sigma M^(-1/(D+4)), sigma the rms standard deviation: right in rate for one Gaussian, wide for several modes."""
    return _spread(y) * y.shape[-2] ** (-1 / (y.shape[-1] + 4))


def silverman(y: Tensor) -> float:
    """sigma (M (D+2)/4)^(-1/(D+4)): the bandwidth of least integrated error were y Gaussian; wide for several modes."""
    dim = y.shape[-1]
    return _spread(y) * (y.shape[-2] * (dim + 2) / 4) ** (-1 / (dim + 4))


def median_heuristic(y: Tensor, *, at_most: int = 2000) -> float:
    """The median distance between two samples; every (M / at_most)-th sample is used where there are more."""
    _one_cloud(y)
    thinned = y.detach()[:: max(1, math.ceil(len(y) / at_most))].double()
    return _positive(torch.pdist(thinned).median().item())


def leave_one_out(y: Tensor, *, kernel: Callable[[float], Kernel] = Gaussian, rounds: int = 4) -> float:
    r"""The bandwidth that predicts each sample best from the others: argmax_h Σ_i log p_h^(-i)(y_i).

    Duplicated samples drive it to zero: each is then predicted perfectly by its copy. Searched on a logarithmic
    grid around Scott's, refined `rounds` times, to about 1 %.

    Args: y: [M, D]; kernel: h -> Kernel, one with finite mass. Returns: h.
    Raises: ValueError on clouds of one point, kernels without density.
    """
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
        return log_mass.sum().item() + len(y) * (k.log_norm(y.shape[-1]) or 0.0)

    best, width = math.log(start), math.log(100.0)
    for _ in range(rounds):
        grid = [best + width * t / 5 for t in range(-5, 6)]
        best = max(grid, key=lambda log_h: score(math.exp(log_h)))
        width /= 5
    return math.exp(best)


def _one_cloud(y: Tensor) -> None:
    check_clouds(y, y, None, True, ("y", "y"))
    if y.dim() != 2:
        raise ValueError(
            f"y is {list(y.shape)}; a rule wants one cloud [M, D]: call it on each batch element."
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
