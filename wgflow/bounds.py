r"""Proposition 1 made usable: how much a change of the positives, p -> p', can change the drift and its loss.

p_x is p reweighted by k(x, ·). V_p(x) - V_p'(x) is a difference of the means of p_x and p'_x, so its norm is at most
diam TV(p_x, p'_x); and TV(p_x, p'_x) <= κ TV(p, p') with κ = k_max / k_min over the support. Measures are weights
[..., M] on shared points [M, D] or [..., M, D], each row summing to 1; lengths are those of the points.
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
    "published_loss_constant",
]


def diameter(points: Tensor) -> float:
    """The largest distance between two points, points [M, D], a length."""
    check_clouds(points, points, None, False, ("points", "points"))
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").max().item()


def kernel_ratio(kernel: Kernel, diam: float) -> float:
    """κ = k(0) / k(diam) >= 1, the ratio of the largest to the smallest weight on a support of diameter `diam`.

    Infinite where k overflows or vanishes: at h = .05 and diam 10, κ = exp(20000) and every global constant is vacuous.
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
    """L with |V_p(x) - V_p'(x)| <= L TV(p, p'): κ diam, and no smaller one does; a length."""
    return kernel_ratio(kernel, diam) * diam


def loss_constant(kernel: Kernel, diam: float) -> float:
    """C with |L(p) - L(p')| <= C TV(p, p') for L = E|V|²: 2 κ diam², and no smaller one does; length²."""
    return 2 * kernel_ratio(kernel, diam) * diam**2


def published_loss_constant(kernel: Kernel, diam: float) -> float:
    """The paper's form of C, quadratic in the ratio: 2 κ² diam² (its O(·), with the factor 2 of ours); length²."""
    return 2 * kernel_ratio(kernel, diam) ** 2 * diam**2


def localised_variation(
    x: Tensor, points: Tensor, a: Tensor, b: Tensor, *, kernel: Kernel
) -> Tensor:
    """TV(a_x, b_x) at each x [..., N, D]: the variation that a kernel at x can see. Returns [..., N], in [0, 1]."""
    check_clouds(x, points, None, False, ("x", "points"))
    log_k = kernel.log_pairs(x, points)
    seen = [(log_k + w.log().unsqueeze(-2)).softmax(-1) for w in (a, b)]
    return total_variation(*seen)


def localised_bound(x: Tensor, points: Tensor, a: Tensor, b: Tensor, *, kernel: Kernel) -> Tensor:
    r"""2 diam² E_x TV(a_x, b_x) >= |L(a) - L(b)|: computable from samples and never above 2 diam², whatever h.

    Args: x: [N, D] points whose drift is averaged (they count in the diameter); points: [M, D]; a, b: [M].
    Returns: a scalar, length².
    """
    diam = diameter(torch.cat([x, points]))
    return 2 * diam**2 * localised_variation(x, points, a, b, kernel=kernel).mean(-1)


def drift_loss(
    x: Tensor, points: Tensor, weights: Tensor, neg: Tensor, *, kernel: Kernel
) -> Tensor:
    """L = E_x |V(x)|² for positives `weights` [M] on points [M, D] and negatives [K, D]; a scalar, length²."""
    V = drifting_field(x, points, neg, kernel=kernel, pos_weights=weights)
    return V.square().sum(-1).mean(-1)
