r"""Bandwidth selection: rules that choose the length scale of a kernel from samples.

Each rule takes one cloud y [M, D], treats its coordinates alike, and returns a number, a length in the units of y;
`per_dimension` and `full_matrix` apply a rule to standardised coordinates, and to batches. `Annealed` is a schedule for
flows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Gaussian, Kernel, divide, positive
from wgflow.reductions import (
    check_clouds,
    kernel_shift_f64,
    log_total,
    require_unsharded,
)

__all__ = [
    "Annealed",
    "full_matrix",
    "leave_one_out",
    "median_heuristic",
    "per_dimension",
    "scott",
    "silverman",
]


@checked
def scott(y: Tensor, *, weights: Tensor | None = None) -> float:
    """Scott's rule: sigma M^(-1/(D+4)), sigma the rms standard deviation. Too wide for several modes.

    Args:
        y: [M, D].
        weights: [M], w >= 0, of which only ratios matter: M is then the effective sample size (Σw)² / Σw², and sigma
            is weighted. None: equal weights.
    """
    sigma, m = _spread(y, weights)
    return sigma * m ** (-1 / (y.shape[-1] + 4))


@checked
def silverman(y: Tensor, *, weights: Tensor | None = None) -> float:
    """Silverman's rule: sigma (M (D+2)/4)^(-1/(D+4)), optimal if y is Gaussian. Too wide for several modes.

    Arguments as `scott`.
    """
    sigma, m = _spread(y, weights)
    dim = y.shape[-1]
    return sigma * (m * (dim + 2) / 4) ** (-1 / (dim + 4))


@checked
def median_heuristic(
    y: Tensor,
    *,
    weights: Tensor | None = None,
    at_most: int = 2000,
    generator: torch.Generator | None = None,
) -> float:
    """The median distance between two samples: of all pairs, or of half `at_most` squared if there are more.

    Args:
        y: [M, D].
        weights: [M], w >= 0: a pair counts w_i w_j. None: equal weights.
        at_most: the number of samples up to which all pairs are taken.
        generator: draws the pairs. None: the same pairs at every call.

    Raises:
        ValueError: Where more than half of the pairs coincide, or `at_most` is below 2.
    """
    if at_most < 2:
        raise ValueError(f"at_most = {at_most}; wanted at least 2 samples, which make a pair.")
    shares, m = _shares(y, weights), len(y)
    y = y.detach().double()
    if m <= at_most:
        gaps = torch.pdist(y)
        pair = torch.triu_indices(m, m, 1, device=y.device)
        mass = shares[pair[0]] * shares[pair[1]]
    else:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        u = torch.rand(
            2, at_most**2 // 2, generator=generator, dtype=torch.float64, device=generator.device
        )
        # Not torch.multinomial, which is limited to 2^24 categories. Rounding may leave the last sum below 1.
        i, j = torch.searchsorted(shares.cumsum(0), u.to(y.device)).clamp_max(m - 1)
        gaps = torch.cat(
            [
                (y[a] - y[b]).norm(dim=-1)
                for a, b in zip(i.split(1 << 16), j.split(1 << 16), strict=True)
            ]
        )
        mass = (i != j).double()
    gaps, order = gaps.sort()
    rank = mass[order].cumsum(0)
    # The least distance with half of the mass at or below it, up to rounding of the sum.
    median = gaps[torch.searchsorted(rank, 0.5 * (1 - 1e-12) * rank[-1])].item()
    if median == 0:
        raise ValueError(
            "at least half of the pairs of samples coincide, so the median distance is 0; count duplicates once, "
            "y.unique(dim=0), or use scott."
        )
    return median


@checked
def leave_one_out(
    y: Tensor,
    *,
    weights: Tensor | None = None,
    kernel: Callable[[float], Kernel] = Gaussian,
    rounds: int = 4,
) -> float:
    r"""Leave-one-out maximum likelihood: argmax_h Σ_i w_i log p_h^(-i)(y_i), the KDE of all samples but the i-th.

    Duplicates favour short lengths: each is predicted perfectly by its copy. The search doubles h from below the
    distance of the two nearest samples to 100 times Scott's rule, and refines the best of these `rounds` times, to
    about 1 %. It takes M² log(range) time.

    Args:
        y: [M, D].
        weights: [M], w >= 0, of which only ratios matter; None: equal.
        kernel: h -> Kernel, of finite mass.
        rounds: refinements of the grid.

    Returns:
        The length scale h.
    Raises:
        ValueError: On one point, a kernel without a density, negative rounds, or if all samples with weight have
            duplicates: no h is then the most likely.
    """
    require_unsharded("leave_one_out")
    if rounds < 0:
        raise ValueError(f"rounds = {rounds}; wanted a number of refinements, at least 0.")
    shares = _shares(y, weights)
    y, shares = y.detach().double()[shares > 0], shares[shares > 0]
    m, dim = y.shape
    widest = 100 * scott(y, weights=shares)
    if kernel(widest).log_norm(dim) is None:
        raise ValueError(
            f"{kernel(widest)!r} has no finite mass in dimension {dim}, so it predicts nothing; use Gaussian."
        )
    nearest = _nearest(y)
    if not bool((nearest > 0).any()):
        raise ValueError(
            "every sample of y has a duplicate, which predicts it the better the shorter the length scale; count "
            "duplicates once, y.unique(dim=0), or use scott."
        )
    w = None if weights is None else shares

    def score(h: float) -> float:
        k = kernel(h)
        log_mass, _ = kernel_shift_f64(y, y, kernel=k, weights=w, skip_self=True)
        log_p = log_mass - log_total(y, w, True) + float(k.log_norm(dim) or 0.0)
        return float(shares @ log_p)

    # Below the first length, d² > M D h² even for the nearest two samples: the likelihood falls with h.
    low, high = nearest[nearest > 0].min().item() / (4 * m * dim), widest
    width = math.log(2)
    grid = [math.log(low) + width * t for t in range(math.ceil(math.log(high / low) / width) + 1)]
    best = max(grid, key=lambda log_h: score(math.exp(log_h)))
    for _ in range(rounds):
        grid = [best + width * t / 5 for t in range(-5, 6)]
        best = max(grid, key=lambda log_h: score(math.exp(log_h)))
        width /= 5
    return math.exp(best)


@checked
def per_dimension(
    y: Tensor,
    *,
    weights: Tensor | None = None,
    rule: Callable[..., float] = scott,
    kernel: Callable[[Tensor], Kernel] = Gaussian,
) -> Kernel:
    r"""A kernel with a length scale per dimension and batch element: h_d = sigma_d rule(y / sigma).

    sigma_d is the standard deviation along d: Scott's and Silverman's rules per dimension, or any rule applied to
    standardised coordinates.

    Args:
        y: [..., M, D].
        weights: [..., M], w >= 0, of which only ratios matter; None: equal. Passed to the rule too.
        rule: one cloud [M, D] -> a length; with weights called as rule(cloud, weights=[M]).
        kernel: a tensor of length scales -> Kernel, such as the class `Gaussian`.

    Returns:
        The kernel with length scales [..., 1, D], in the dtype of y, without gradient.

    Raises:
        ValueError: On one point, or a dimension along which all samples coincide.
    """
    require_unsharded("a bandwidth")
    check_clouds(y, y, None, True, ("y", "y"), weights=weights)
    points = y.detach().double()
    sigma = _deviation(points, weights)
    if not bool(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(
            "y has a dimension without spread (or a number that is not finite), so no bandwidth fits it; leave that "
            "dimension out, or choose lengths by hand: Gaussian(lengths)."
        )
    return kernel((sigma * _rule_lengths(points / sigma, weights, rule)).to(y.dtype))


@checked
def full_matrix(
    y: Tensor,
    *,
    weights: Tensor | None = None,
    rule: Callable[..., float] = scott,
    kernel: Callable[[Tensor], Kernel] = Gaussian,
) -> Kernel:
    r"""A kernel with a matrix of squared lengths per batch element, H = h² S: the rule in whitened coordinates.

    S = C Cᵀ is the covariance of y, and h = rule(C⁻¹ y): Scott's and Silverman's rules for data whose coordinates are
    correlated, equivariant under every linear map.

    Arguments as `per_dimension`.

    Returns:
        The kernel with the Cholesky factor h C [..., D, D] as length scale, in the dtype of y, without gradient.

    Raises:
        ValueError: Where S is singular: on D points or fewer, or on samples in a subspace.
    """
    require_unsharded("a bandwidth")
    check_clouds(y, y, None, True, ("y", "y"), weights=weights)
    points = y.detach().double()
    w = points.new_ones(y.shape[:-1]) if weights is None else weights.detach().double()
    w = (w / w.sum(-1, keepdim=True)).unsqueeze(-1)
    points = points - (w * points).sum(-2, keepdim=True)
    covariance = (w * points).mT @ points / (1 - w.square().sum(-2, keepdim=True))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    # Rounding may leave a singular matrix a factor: then a pivot is of the size of the rounding errors.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    least = 1e-12 * covariance.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or not bool((pivots > least).all()):
        raise ValueError(
            f"y {list(y.shape)} has a singular covariance, or holds NaN; wanted more than {y.shape[-1]} points, in no "
            "subspace. Use per_dimension, or leave out coordinates that are linear functions of others."
        )
    h = _rule_lengths(divide(points, factor), weights, rule)
    return kernel((factor * h).to(y.dtype))


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


def _shares(y: Tensor, weights: Tensor | None) -> Tensor:
    """Weights that sum to 1, [M] in float64. Raises: ValueError unless y is one cloud of two points or more."""
    require_unsharded("a bandwidth")
    check_clouds(y, y, None, True, ("y", "y"), weights=weights)
    if y.dim() != 2 or (weights is not None and weights.dim() != 1):
        raise ValueError(
            f"y is {list(y.shape)}; wanted one cloud [M, D], with weights [M]; call the rule on each batch element, or "
            "use per_dimension."
        )
    if not bool(y.isfinite().all()):
        raise ValueError(
            "y holds NaN or infinity, so no bandwidth fits it; find it with torch.isfinite(y)."
        )
    w = y.new_ones(len(y)) if weights is None else weights.detach()
    w = w.double() / w.double().sum()
    if not bool(w.max() < 1):
        raise ValueError("weights leave one sample alone (or are not finite), which has no spread.")
    return w


def _deviation(y: Tensor, weights: Tensor | None) -> Tensor:
    """The standard deviation along each dimension, [..., 1, D], unbiased for weights that do not depend on y."""
    if weights is None:
        return y.std(-2, keepdim=True)
    w = weights.detach().double().unsqueeze(-1)
    w = w / w.sum(-2, keepdim=True)
    mean = (w * y).sum(-2, keepdim=True)
    return (
        (w * (y - mean).square()).sum(-2, keepdim=True) / (1 - w.square().sum(-2, keepdim=True))
    ).sqrt()


def _rule_lengths(y: Tensor, weights: Tensor | None, rule: Callable[..., float]) -> Tensor:
    """The length of each cloud by a rule, [..., 1, 1] in float64."""
    lead, each = y.shape[:-2], {}
    if weights is not None:
        lead = torch.broadcast_shapes(lead, weights.shape[:-1])
        each = {"weights": weights.detach().double().expand(*lead, -1).reshape(-1, y.shape[-2])}
    clouds = y.expand(*lead, -1, -1).reshape(-1, *y.shape[-2:])
    lengths = [
        rule(cloud, **{name: w[i] for name, w in each.items()}) for i, cloud in enumerate(clouds)
    ]
    return torch.tensor(lengths, dtype=torch.float64, device=y.device).view(*lead, 1, 1)


def _spread(y: Tensor, weights: Tensor | None) -> tuple[float, float]:
    """The rms standard deviation, and the effective number of samples."""
    shares = _shares(y, weights)
    sigma = _deviation(y.detach().double(), weights).square().mean().sqrt().item()
    if not 0 < sigma < math.inf:
        raise ValueError(
            "all samples of y coincide, so no bandwidth fits them; choose one by hand."
        )
    return sigma, 1 / shares.square().sum().item()


def _nearest(y: Tensor) -> Tensor:
    """The distance of each sample [M, D] to the nearest other one, [M]."""
    rows = max(1, (1 << 22) // len(y))
    parts = []
    for start in range(0, len(y), rows):
        gaps = torch.cdist(y[start : start + rows], y, compute_mode="donot_use_mm_for_euclid_dist")
        gaps.diagonal(start).fill_(math.inf)
        parts.append(gaps.amin(-1))
    return torch.cat(parts)
