r"""Distances between two samples, x [N, D] from one distribution and y [M, D] from another; no densities needed.

Weights are w >= 0, of which only ratios matter; None: equal. All sums are made in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wgflow.arguments import checkable, checked, draw_device
from wgflow.distances import distances, safe_root, sq_distances
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import (
    check_clouds,
    check_no_nan,
    kernel_shift_f64,
    log_total,
    require_unsharded,
)

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
def energy_distance(
    x: Tensor, y: Tensor, *, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    r"""2 E|x-y| - E|x-x'| - E|y-y'| without self pairs (Székely and Rizzo 2013): unbiased, of either sign near 0.

    Args:
        x: [..., N, D], N >= 2.
        y: [..., M, D], M >= 2.
        x_weights: [..., N]; at least two of them positive.
        y_weights: [..., M]; likewise.

    Returns:
        [...], lengths, one for each pair of clouds in the batch. Twice differentiable; computed in blocks of rows.

    Raises:
        ValueError: on clouds that do not match or hold one point, on NaN.
    """
    require_unsharded("energy_distance")
    check_clouds(x, y, None, False, weights=y_weights)
    check_clouds(y, x, None, False, ("y", "x"), weights=x_weights)
    (a, p), (b, q) = _measure(x, x_weights, "x"), _measure(y, y_weights, "y")
    within = _mean_distance(a, p, a, p) / _unequal(p) + _mean_distance(b, q, b, q) / _unequal(q)
    distance = 2 * _mean_distance(a, p, b, q) - within
    check_no_nan(distance, "x or y")
    return distance.to(x.dtype)  # rounded last: for equal laws the three means cancel


@checked
def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel | Sequence[Kernel],
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    r"""E k(x,x') + E k(y,y') - 2 E k(x,y) without self pairs: the unbiased squared MMD (Gretton et al. 2012).

    Args:
        x: [..., N, D], N >= 2.
        y: [..., M, D], M >= 2.
        kernel: one kernel, or several whose sum is meant.
        x_weights: [..., N]; at least two of them positive.
        y_weights: [..., M]; likewise.

    Returns:
        [...], in the units of k. Differentiable; large clouds are summed in blocks.

    Raises:
        ValueError: as `kernel_average`; on one point in a cloud.
    """
    require_unsharded("mmd2")
    check_clouds(x, y, None, False)
    (a, p), (b, q) = _measure(x, x_weights, "x"), _measure(y, y_weights, "y")

    def mean(a: Tensor, p: Tensor, b: Tensor, q: Tensor, skip: bool) -> Tensor:
        masses = [
            (p * kernel_shift_f64(a, b, kernel=k, weights=q, skip_self=skip)[0].exp()).sum(-1)
            for k in as_kernels(kernel)
        ]
        return torch.stack(masses).sum(0)

    within = mean(a, p, a, p, True) / _unequal(p) + mean(b, q, b, q, True) / _unequal(q)
    # In float64 until the end: for equal laws the three means cancel.
    return (within - 2 * mean(a, p, b, q, False)).to(x.dtype)


@checked
def sliced_w2(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 256,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The sliced Wasserstein-2 distance: the root mean square, over random directions, of W2 of the projections.

    Args:
        x: [N, D].
        y: [M, D]; N and M may differ, the 1-D transport is exact.
        projections: the number of directions.
        x_weights: [N].
        y_weights: [M].
        generator: draws the directions.

    Returns:
        A scalar, a length. Differentiable in x and y, with derivative 0 where it vanishes.

    Raises:
        ValueError: on clouds that do not match or come in batches, projections < 1.
    """
    p, q = _check_both(x, y, x_weights, y_weights)
    if projections < 1:
        raise ValueError(
            f"projections = {projections}; wanted at least 1, and some hundreds for a steady number."
        )
    directions = torch.randn(
        x.shape[-1],
        projections,
        generator=generator,
        dtype=torch.float64,
        device=draw_device(generator, torch.device("cpu")),
    )
    directions = (directions / directions.norm(dim=0)).to(x.device)
    if x_weights is not None or y_weights is not None:
        x, p, y, q = x[p > 0], p[p > 0], y[q > 0], q[q > 0]  # far ones would cost digits
    origin = x.detach().double().sort(0).values[len(x) // 2]  # the median
    a, i = ((x.double() - origin) @ directions).sort(dim=0)
    b, j = ((y.double() - origin) @ directions).sort(dim=0)
    if x_weights is None and y_weights is None and len(a) == len(b):
        return safe_root((a - b).square().mean()).to(x.dtype)
    # Both quantile functions are steps: between two of their jumps each is one point.
    jumps_a, jumps_b = p[i].cumsum(0).mT.contiguous(), q[j].cumsum(0).mT.contiguous()
    jumps = torch.cat([jumps_a, jumps_b], -1).clamp_max(1.0).sort(-1).values
    width = torch.diff(jumps, prepend=jumps.new_zeros(projections, 1))
    middle = jumps - 0.5 * width
    at_a = torch.searchsorted(jumps_a, middle).clamp_max(len(a) - 1)
    at_b = torch.searchsorted(jumps_b, middle).clamp_max(len(b) - 1)
    cost = (a.mT.gather(-1, at_a) - b.mT.gather(-1, at_b)).square()
    return safe_root((width * cost).sum(-1).mean()).to(x.dtype)


@checked
def w2(
    x: Tensor, y: Tensor, *, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    r"""The exact Wasserstein-2 distance: by assignment (scipy) in O(N³), or by network simplex (POT).

    POT (`pip install wgflow[ot]`) is needed for unequal sizes and weights.

    Args:
        x: [N, D].
        y: [M, D].
        x_weights: [N].
        y_weights: [M].

    Returns:
        A scalar, a length. Differentiable in x and y with the plan held fixed, with derivative 0 where it vanishes.

    Raises:
        ValueError: on clouds that do not match or come in batches.
        ImportError: without POT where it is needed.
    """
    p, q = _check_both(x, y, x_weights, y_weights)
    x, p, y, q = x[p > 0], p[p > 0], y[q > 0], q[q > 0]
    cost = sq_distances(x.double(), y.double())
    if x_weights is None and y_weights is None and len(x) == len(y):
        # Imported here: scipy.optimize would double the time of `import wgflow`.
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
        rows, columns = (torch.as_tensor(t, device=x.device) for t in (rows, columns))
        return safe_root(cost[rows, columns].mean()).to(x.dtype)
    try:
        import ot
    except ImportError as missing:
        raise ImportError(
            f"w2 of {len(x)} and {len(y)} points or with weights needs POT: pip install POT. Without it, thin the "
            "larger cloud: y[torch.randperm(len(y))[: len(x)]], or use sliced_w2."
        ) from missing
    # In units of the largest cost: POT's tolerance is an absolute number.
    relative = cost.detach() / cost.detach().amax().clamp_min(torch.finfo(cost.dtype).tiny)
    plan = ot.emd(*(t.detach().cpu().numpy() for t in (p, q, relative)), numItermax=10_000_000)
    plan = torch.as_tensor(plan, device=x.device)
    return safe_root((plan * cost).sum()).to(x.dtype)


@checked
def kde_kl(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    r"""An estimate of KL(q_h || p_h): the mean of log q_h - log p_h over x ~ q, each point left out of its own density.

    Of either sign near equality, infinite where only one of the densities is 0. Smoothing hides differences below
    the bandwidth.

    Args:
        x: [..., N, D], N >= 2, samples of q.
        y: [..., M, D], samples of p.
        kernel: of both density estimates.
        x_weights: [..., N]; at least two of them positive.
        y_weights: [..., M].

    Returns:
        [...], nats.

    Raises:
        ValueError: on clouds that do not match, fewer than two points in x, or a point of x where a compact kernel
            leaves both densities 0.
    """
    require_unsharded("kde_kl")
    check_clouds(x, y, None, False)
    a, p = _measure(x, x_weights, "x")
    wx = None if x_weights is None else p
    log_q, _ = kernel_shift_f64(a, a, kernel=kernel, weights=wx, skip_self=True)
    log_p, _ = kernel_shift_f64(a, y.double(), kernel=kernel, weights=y_weights)
    if bool(((log_q.maximum(log_p) == -math.inf) & (p > 0)).any()):
        raise ValueError(
            f"a point of x is out of reach of every other sample of x and of y, so no ratio is known there: {kernel!r} "
            "has compact support. Widen it, or use a Gaussian."
        )
    log_ratio = (log_q - log_total(x, wx, True)) - (log_p - log_total(y, y_weights))
    # Points without weight do not count, not even where their densities are 0.
    return (p * torch.where(p > 0, log_ratio, 0.0)).sum(-1).to(x.dtype)


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
    nearest = distances(centres.double(), x.double()).amin(-1)
    return (nearest <= radius).to(x.dtype).mean()


@checked
def mode_proportions(x: Tensor, centres: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """The fraction of the points that are nearest to each mode.

    Args:
        x: [N, D].
        centres: [K, D], the modes.
        weights: [N], of the points.

    Returns:
        [K], summing to 1.

    Raises:
        ValueError: on batches, empty clouds, NaN.
    """
    _check_modes(x, centres)
    check_clouds(centres, x, None, False, ("centres", "x"), weights=weights)
    _, w = _measure(x, weights, "x", least=1)
    nearest = sq_distances(x.double(), centres.double()).argmin(-1)
    return torch.zeros_like(w[:1]).expand(len(centres)).scatter_add(0, nearest, w).to(x.dtype)


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
    a, b = x.double(), pos.double()  # squares of large and small numbers leave float32
    spread = distances(a, a).mean() * (n / (n - 1))
    reach = distances(a, b).mean()
    check_no_nan(spread + reach, "x or pos")
    return (spread / reach.clamp_min(torch.finfo(spread.dtype).tiny)).to(x.dtype)


def _check_both(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The shares of x and y. Raises: ValueError on clouds that do not match, are empty, batched or hold NaN."""
    require_unsharded("a metric")
    check_clouds(x, y, None, False, weights=y_weights)
    check_clouds(y, x, None, False, ("y", "x"), weights=x_weights)
    check_no_nan(x - x, "x")  # infinity becomes NaN too
    check_no_nan(y - y, "y")
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(
            f"x is {list(x.shape)} and y is {list(y.shape)}; wanted one cloud each, [N, D] and [M, D]. For a batch, "
            "call once per cloud."
        )
    return _measure(x, x_weights, "x", least=1)[1], _measure(y, y_weights, "y", least=1)[1]


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


def _measure(x: Tensor, weights: Tensor | None, name: str, least: int = 2) -> tuple[Tensor, Tensor]:
    """(points, shares that sum to 1) in float64. Raises: ValueError on fewer points with weight than `least`."""
    if x.shape[-2] < least:
        raise ValueError(
            f"{name} is {list(x.shape)}, one point; wanted at least 2, whose mutual distances count."
        )
    w = torch.ones_like(x[..., 0]) if weights is None else weights
    w = w.double() / w.double().sum(-1, keepdim=True)
    if (
        weights is not None
        and least == 2
        and checkable(w)
        and not bool(((w.detach() > 0).sum(-1) >= 2).all())
    ):
        raise ValueError(
            f"{name}_weights leave one point of {name}; wanted at least 2 with weight."
        )
    return x.double(), w


def _unequal(shares: Tensor) -> Tensor:
    """The probability that two draws are different samples."""
    return 1 - shares.square().sum(-1)


def _mean_distance(x: Tensor, p: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """Σ_ij p_i q_j |x_i - y_j|."""
    batch = math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    rows = max(1, (1 << 22) // (y.shape[-2] * max(batch, 1)))
    parts = [
        (w * (distances(part, y) * q.unsqueeze(-2)).sum(-1)).sum(-1)
        for part, w in zip(x.split(rows, -2), p.split(rows, -1), strict=True)
    ]
    return torch.stack(parts).sum(0)
