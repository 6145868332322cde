r"""Distances between two samples, x [N, D] from one distribution and y [M, D] from another; no densities needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import check_clouds, check_no_nan, kernel_shift_f64, require_unsharded

__all__ = [
    "energy_distance",
    "kde_kl",
    "mmd2",
    "mode_coverage",
    "mode_proportions",
    "sliced_w2",
    "spread_ratio",
    "w2",
]


@checked
def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""2 E|x-y| - E|x-x'| - E|y-y'| without self pairs (Székely and Rizzo 2013): unbiased, of either sign near 0.

    Args:
        x: [..., N, D], N >= 2.
        y: [..., M, D], M >= 2.

    Returns:
        [...], lengths, one for each pair of clouds in the batch. Differentiable; computed in blocks of rows.

    Raises:
        ValueError: on clouds that do not match or hold one point, on NaN.
    """
    require_unsharded("energy_distance")
    check_clouds(x, x, None, True, ("x", "x"))
    check_clouds(y, y, None, True, ("y", "y"))
    check_clouds(x, y, None, False)
    n, m = x.shape[-2], y.shape[-2]
    within = _mean_distance(x, x) * (n / (n - 1)) + _mean_distance(y, y) * (m / (m - 1))
    distance = 2 * _mean_distance(x, y) - within
    check_no_nan(distance, "x or y")
    return distance.to(x.dtype)  # rounded last: for equal laws the three means cancel


@checked
def mmd2(x: Tensor, y: Tensor, *, kernel: Kernel | Sequence[Kernel]) -> Tensor:
    r"""E k(x,x') + E k(y,y') - 2 E k(x,y) without self pairs: the unbiased squared MMD (Gretton et al. 2012).

    Args:
        x: [..., N, D], N >= 2.
        y: [..., M, D], M >= 2.
        kernel: one kernel, or several whose sum is meant.

    Returns:
        [...], in the units of k. Differentiable; large clouds are summed in blocks.

    Raises:
        ValueError: as `kernel_average`.
    """
    require_unsharded("mmd2")
    check_clouds(x, y, None, False)
    n, m = x.shape[-2], y.shape[-2]

    def mean(a: Tensor, b: Tensor, pairs_per_row: int, skip: bool) -> Tensor:
        masses = [
            kernel_shift_f64(a, b, kernel=k, skip_self=skip)[0].exp().mean(-1)
            for k in as_kernels(kernel)
        ]
        return torch.stack(masses).sum(0) / pairs_per_row

    # In float64 until the end: for equal laws the three means cancel.
    return (mean(x, x, n - 1, True) + mean(y, y, m - 1, True) - 2 * mean(x, y, m, False)).to(
        x.dtype
    )


@checked
def sliced_w2(
    x: Tensor, y: Tensor, *, projections: int = 256, generator: torch.Generator | None = None
) -> Tensor:
    r"""The sliced Wasserstein-2 distance: the root mean square, over random directions, of W2 of the projections.

    Args:
        x: [N, D].
        y: [M, D]; N and M may differ, the 1-D transport is exact.
        projections: the number of directions.
        generator: draws the directions.

    Returns:
        A scalar, a length. Differentiable.

    Raises:
        ValueError: on clouds that do not match or come in batches, projections < 1.
    """
    _check_both(x, y)
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(
            f"x is {list(x.shape)} and y is {list(y.shape)}; wanted one cloud each, [N, D] and [M, D]. For a batch, "
            "call once per cloud."
        )
    if projections < 1:
        raise ValueError(
            f"projections = {projections}; wanted at least 1, and some hundreds for a steady number."
        )
    directions = torch.randn(x.shape[-1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(x)
    a, b = (x @ directions).sort(dim=0).values, (y @ directions).sort(dim=0).values
    n, m = len(a), len(b)
    if n == m:
        return (a - b).square().mean().sqrt()
    # Both quantile functions are steps: between two of their jumps (in units of 1/nm) each is one point.
    edges = torch.cat([torch.arange(n) * m, torch.arange(1, m) * n]).unique()
    width = torch.diff(edges, append=torch.tensor([n * m])).to(x) / (n * m)
    cost = (a[edges // m] - b[edges // n]).square()
    return (width @ cost).mean().sqrt()


@checked
def w2(x: Tensor, y: Tensor) -> Tensor:
    r"""The exact Wasserstein-2 distance between clouds of equal size, by assignment (scipy) in O(N³).

    Args:
        x: [N, D].
        y: [N, D].

    Returns:
        A scalar, a length. Differentiable, with the assignment held fixed.

    Raises:
        ValueError: on clouds of unequal size.
    """
    _check_both(x, y)
    if x.shape != y.shape or x.dim() != 2:
        raise ValueError(
            f"x is {list(x.shape)}, y {list(y.shape)}; an assignment wants two clouds [N, D] of one size. "
            "Thin the larger: y[torch.randperm(len(y))[: len(x)]], or use sliced_w2."
        )
    # Imported here: scipy.optimize would double the time of `import wgflow`.
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return (x[torch.from_numpy(rows)] - y[torch.from_numpy(columns)]).square().sum(-1).mean().sqrt()


@checked
def kde_kl(x: Tensor, y: Tensor, *, kernel: Kernel) -> Tensor:
    r"""An estimate of KL(q_h || p_h): the mean of log q_h - log p_h over x ~ q, each point left out of its own density.

    Of either sign near equality, infinite where only one of the densities is 0. Smoothing hides differences below
    the bandwidth.

    Args:
        x: [..., N, D], N >= 2, samples of q.
        y: [..., M, D], samples of p.
        kernel: of both density estimates.

    Returns:
        [...], nats.

    Raises:
        ValueError: on clouds that do not match, fewer than two points in x, or a point of x where a compact kernel
            leaves both densities 0.
    """
    require_unsharded("kde_kl")
    check_clouds(x, y, None, False)
    n, m = x.shape[-2], y.shape[-2]
    log_q, _ = kernel_shift_f64(x, x, kernel=kernel, skip_self=True)
    log_p, _ = kernel_shift_f64(x, y, kernel=kernel)
    if bool((log_q.maximum(log_p) == -math.inf).any()):
        raise ValueError(
            f"a point of x is out of reach of every other sample of x and of y, so no ratio is known there: {kernel!r} "
            "has compact support. Widen it, or use a Gaussian."
        )
    return ((log_q - log_p).mean(-1) - math.log((n - 1) / m)).to(x.dtype)


@checked
def mode_coverage(x: Tensor, centres: Tensor, *, radius: float) -> Tensor:
    """The fraction of modes with a point of x nearby: 1 when no mode was dropped.

    Args:
        x: [N, D].
        centres: [K, D], the modes.
        radius: how near, a length.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: on batches, empty clouds, NaN, a radius that is not positive.
    """
    _check_modes(x, centres)
    if not 0 < radius < math.inf:
        raise ValueError(
            f"radius = {radius!r}; wanted a positive length, such as 3 standard deviations of a mode."
        )
    nearest = torch.cdist(centres, x, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
    return (nearest <= radius).to(x.dtype).mean()


@checked
def mode_proportions(x: Tensor, centres: Tensor) -> Tensor:
    """The fraction of the points that are nearest to each mode.

    Args:
        x: [N, D].
        centres: [K, D], the modes.

    Returns:
        [K], summing to 1.

    Raises:
        ValueError: on batches, empty clouds, NaN.
    """
    _check_modes(x, centres)
    nearest = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
    return torch.bincount(nearest, minlength=len(centres)).to(x.dtype) / len(x)


@checked
def spread_ratio(x: Tensor, pos: Tensor) -> Tensor:
    """E|x - x'| / E|x - y| over the whole batch, the diversity of generated points: below about .2 they collapsed.

    Args:
        x: [..., N, D] generated points, N >= 2.
        pos: [..., P, D] data.

    Returns:
        A scalar without gradient; 1 or somewhat less for points that match the data.

    Raises:
        ValueError: when N < 2, on clouds that do not match, on NaN.
    """
    require_unsharded("spread_ratio")
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, x, None, True, ("x", "x"))
    x, pos, n = x.detach(), pos.detach(), x.shape[-2]
    spread = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").mean() * (n / (n - 1))
    reach = torch.cdist(x, pos, compute_mode="donot_use_mm_for_euclid_dist").mean()
    check_no_nan(spread + reach, "x or pos")
    return spread / reach.clamp_min(torch.finfo(x.dtype).tiny)


def _check_both(x: Tensor, y: Tensor) -> None:
    """Refuse clouds that do not match, are empty or hold NaN. Raises: ValueError."""
    require_unsharded("a metric")
    check_clouds(x, y, None, False)
    check_clouds(y, x, None, False, ("y", "x"))
    check_no_nan(x - x, "x")  # infinity becomes NaN too
    check_no_nan(y - y, "y")


def _check_modes(x: Tensor, centres: Tensor) -> None:
    require_unsharded("a metric")
    check_clouds(x, centres, None, False, ("x", "centres"))
    check_clouds(centres, x, None, False, ("centres", "x"))
    check_no_nan(x, "x")
    check_no_nan(centres, "centres")
    if x.dim() != 2 or centres.dim() != 2:
        raise ValueError(
            f"x is {list(x.shape)} and centres are {list(centres.shape)}; wanted [N, D] and [K, D]. For a batch, call "
            "once per cloud."
        )


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    batch = math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    rows = max(1, (1 << 22) // (y.shape[-2] * max(batch, 1)))
    wide = torch.promote_types(x.dtype, torch.float32)  # torch has no distances in half precision
    total = sum(
        torch.cdist(part.to(wide), y.to(wide), compute_mode="donot_use_mm_for_euclid_dist").sum(
            (-2, -1), dtype=torch.float64
        )
        for part in x.split(rows, -2)
    )
    return total / (x.shape[-2] * y.shape[-2])  # type: ignore[operator]
