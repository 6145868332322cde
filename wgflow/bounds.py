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


def diameter(points: Tensor) -> float:
    """Return the largest distance between two points [M, D], a length."""
    check_clouds(points, points, None, False, ("points", "points"))
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").max().item()


def kernel_ratio(kernel: Kernel, diam: float) -> float:
    """Return κ = k(0) / k(diam) >= 1, the largest over the smallest kernel value on a support of diameter `diam`.

    Infinite where the ratio overflows or k vanishes: at h = .05 and diam 10, κ = exp(20000).

    Raises:
        ValueError: For an anisotropic kernel, whose least value is no function of the distance.
    """
    if kernel.standardize()[1] is not None:
        raise ValueError(
            f"kernel is {kernel!r}, whose length scale is a tensor; wanted a number. Divide the points by the tensor "
            "and pass the kernel of length scale 1.0: the bound then holds in those units."
        )
    sq = torch.tensor([0.0, diam**2], dtype=torch.float64)
    low, high = kernel.log(sq).flip(0).tolist()
    return math.exp(high - low) if high - low < 700 else math.inf


def drift_constant(kernel: Kernel, diam: float) -> float:
    """Return the least L with |V⁺_p(x) - V⁺_p'(x)| <= L TV(p, p'), namely κ diam; a length."""
    return kernel_ratio(kernel, diam) * diam


def loss_constant(kernel: Kernel, diam: float) -> float:
    """Return the least C with |L(p) - L(p')| <= C TV(p, p') for L = E|V|², namely 2 κ diam²; length²."""
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
    log_k = kernel.log_pairs(x, points)
    seen = [(log_k + w.log().unsqueeze(-2)).softmax(-1) for w in (a, b)]
    return total_variation(*seen)


def localised_bound(x: Tensor, points: Tensor, a: Tensor, b: Tensor, *, kernel: Kernel) -> Tensor:
    r"""Return 2 diam² E_x TV(a_x, b_x) >= |L(a) - L(b)|, at most 2 diam² whatever the bandwidth.

    The negatives of L must lie within the convex hull of x and points, as x itself does.

    Args:
        x: [N, D] points whose drift is averaged; they count in the diameter.
        points: [M, D] shared support of the measures.
        a: [M] weights of one measure.
        b: [M] weights of the other.
        kernel: any kernel; its bandwidth is a length.

    Returns:
        A scalar, length².
    """
    diam = diameter(torch.cat([x, points]))
    return 2 * diam**2 * localised_variation(x, points, a, b, kernel=kernel).mean(-1)


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
