r"""Constants of Proposition 1: how far a change of the positives, p to p', moves the drift and its loss.

Let p_x be p reweighted by k(x, ·). V⁺_p(x) - V⁺_p'(x) is a difference of the means of p_x and p'_x, so its norm is at
most diam TV(p_x, p'_x), and TV(p_x, p'_x) <= κ TV(p, p') with κ = k_max / k_min over the support. Measures are weights
[..., M] on shared points [M, D] or [..., M, D], each row summing to 1. Proofs: docs/theory.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.fields import drifting_field
from wgflow.kernels import Kernel
from wgflow.reductions import check_clouds
from wgflow.targets import total_variation

__all__ = [
    "diameter",
    "drift_constant",
    "drift_loss",
    "kernel_ratio",
    "localised_bound",
    "localised_variation",
    "loss_constant",
    "published_drift_constant",
    "published_loss_constant",
]


def diameter(*clouds: Tensor) -> float:
    """Return the largest distance between two points of the union of clouds [M, D], a length.

    Raises:
        ValueError: On clouds that do not match, hold no points or are batched.
    """
    for cloud in clouds:
        check_clouds(clouds[0], cloud, None, False, ("points", "points"))
        if cloud.dim() != 2:
            raise ValueError(f"points are {list(cloud.shape)}; wanted [M, D], one cloud.")
    points = torch.cat(clouds).double()  # half precision has no distances
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").max().item()


def kernel_ratio(kernel: Kernel, diam: float) -> float:
    """Return κ = k(0) / k(diam) >= 1, the largest over the smallest kernel value on a support of diameter `diam`.

    Infinite where the ratio overflows, k vanishes or k is singular at 0: at h = .05 and diam 10, κ = exp(20000).

    Args:
        kernel: any kernel whose length scale is a number.
        diam: the diameter of x and the support of the measures, and for the constants of a loss of the negatives
            too: `diameter(x, points, neg)`.

    Raises:
        ValueError: For an anisotropic kernel, whose least value is no function of the distance.
    """
    if kernel.standardize()[1] is not None:
        raise ValueError(
            f"kernel is {kernel!r}, whose length scale is a tensor; wanted a number. Divide the points by the tensor "
            "and pass the kernel of length scale 1.0: the bound then holds in those units."
        )
    sq = torch.tensor([0.0, diam**2], dtype=torch.float64, device="cpu")
    high, low = kernel.log(sq).tolist()
    if high == -math.inf:  # a power of 1/r leaves out coincident points, where it is infinite
        return math.inf
    return math.exp(high - low) if high - low < 700 else math.inf


def drift_constant(kernel: Kernel, diam: float) -> float:
    """Return the least L with |V⁺_p(x) - V⁺_p'(x)| <= L TV(p, p'), namely κ diam; a length."""
    return kernel_ratio(kernel, diam) * diam


def loss_constant(kernel: Kernel, diam: float) -> float:
    """Return the least C with |L(p) - L(p')| <= C TV(p, p') for L = E|V|², namely 2 κ diam²; length².

    `diam` is the diameter of x, the support and the negatives together: `diameter(x, points, neg)`.
    """
    return 2 * kernel_ratio(kernel, diam) * diam**2


def published_drift_constant(kernel: Kernel, diam: float) -> float:
    """Return L_V of DFP Eq. 29 as its proof gives it, (κ + κ²) diam; a length.

    The quotient bound of N / D, N = ∫ k (y - x) dp and D = ∫ k dp: |N - N'| / D + |N'| |D - D'| / (D D') with |N| <=
    K_max diam and D >= k_min. The least kernel value is the k_min that depends "only on the kernel and action-space
    diameter", as Proposition 1 says of its constant.
    """
    ratio = kernel_ratio(kernel, diam)
    return (ratio + ratio * ratio) * diam  # a product overflows to infinity, a power raises


def published_loss_constant(kernel: Kernel, diam: float) -> float:
    """Return C of DFP Eq. 32, 4 M L_V = 4 (κ + κ²) diam² with M = diam; length². At least 4 times `loss_constant`."""
    return 4 * diam * published_drift_constant(kernel, diam)


def localised_variation(
    x: Tensor, points: Tensor, a: Tensor, b: Tensor, *, kernel: Kernel
) -> Tensor:
    """Return TV(a_x, b_x) at each x, the total variation between two measures reweighted by k(x, ·).

    Out of reach of a compact kernel a measure becomes a point mass at x, where its mean shift is 0: the variation is
    then 1, or 0 if neither measure is in reach.

    Args:
        x: [..., N, D] points at which the kernel looks.
        points: [..., M, D] shared support of the measures.
        a: [..., M] weights of one measure.
        b: [..., M] weights of the other.
        kernel: any kernel; its bandwidth is a length.

    Returns:
        [..., N], in [0, 1].
    """
    check_clouds(x, points, None, False, ("x", "points"))
    log_k = kernel.log_pairs(x.double(), points.double())
    seen = [_reweighted(log_k, w.double()) for w in (a, b)]
    return total_variation(*seen).to(x.dtype)


def _reweighted(log_k: Tensor, weights: Tensor) -> Tensor:
    """Weights [..., N, M + 1] of `points` and of x itself, the latter 1 where the kernel reaches no mass."""
    log_w = log_k + weights.log().unsqueeze(-2)
    empty = log_w.amax(-1, keepdim=True) == -math.inf
    seen = log_w.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return torch.cat([seen, empty.to(seen.dtype)], -1)


def localised_bound(
    x: Tensor, points: Tensor, a: Tensor, b: Tensor, neg: Tensor, *, kernel: Kernel
) -> Tensor:
    r"""Return 2 diam(x, points) diam(x, points, neg) E_x TV(a_x, b_x) >= |L(a) - L(b)|, finite whatever the bandwidth.

    |V|² - |V'|² is the product of V - V', a difference of two means of `points` (or x), and V + V', twice the
    difference of such a mean and one of `neg`.

    Args:
        x: [N, D] points whose drift is averaged.
        points: [M, D] shared support of the measures.
        a: [M] weights of one measure.
        b: [M] weights of the other.
        neg: [K, D] negatives of the loss.
        kernel: any kernel; its bandwidth is a length.

    Returns:
        A scalar, length².
    """
    reach = diameter(x, points) * diameter(x, points, neg)
    return 2 * reach * localised_variation(x, points, a, b, kernel=kernel).mean(-1)


def drift_loss(
    x: Tensor, points: Tensor, weights: Tensor, neg: Tensor, *, kernel: Kernel
) -> Tensor:
    """Return L = E_x |V(x)|², the value of the drifting loss (DFP Eq. 4); a scalar, length².

    Args:
        x: [N, D] points whose drift is averaged.
        points: [M, D] positives.
        weights: [M] their weights.
        neg: [K, D] negatives.
        kernel: any kernel; its bandwidth is a length.
    """
    V = drifting_field(x, points, neg, kernel=kernel, pos_weights=weights)
    return V.square().sum(-1).mean(-1)
