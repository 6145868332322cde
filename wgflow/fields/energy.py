r"""The gradient of the energy score: unit vectors towards the positives, and away from the negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.fields.base import Field, mean_kernel_gradient, refuse_lone_weights
from wgflow.kernels import Riesz, Scaled
from wgflow.reductions import check_clouds, sharding

__all__ = ["EnergyField", "energy_field"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class EnergyField(Field):
    """`energy_field` as a value. Without `neg` a point is left out of its own negatives.

    Args:
        beta: the exponent of the distance, 0 < beta < 2.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        return energy_field(
            x, pos, neg, beta=self.beta, pos_weights=pos_weights, neg_weights=neg_weights
        )


@checked
def energy_field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    beta: float = 1.0,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    r"""V_i = mean_k u(y_k - x_i) - mean_{j≠i} u(x_j - x_i), u(r) = β |r|^(β-1) r/|r|; unit vectors for β = 1.

    V_i = -N ∇_i of the U-statistic of the energy score mean|x-y|^β - mean_{i≠j}|x-x'|^β / 2 (Székely and Rizzo
    2013; Gneiting and Raftery 2007). No bandwidth, strictly proper for every β, linear in the positives: unbiased
    with a single positive and any N >= 2. `mmd_field` is its counterpart for kernels with a bandwidth.

    Args:
        x: [..., N, D] generated points.
        pos: [..., P, D] positives.
        neg: [..., M, D] negatives. None: the points themselves, each leaving itself out (needs N >= 2).
        beta: 0 < β < 2. Small values resolve fine detail better and are noisier; below 1 the pull of near pairs is
            unbounded. Coincident points have no direction and exert no pull.
        pos_weights: [..., P], w >= 0, of which only ratios matter.
        neg_weights: [..., M], likewise.

    Returns:
        [..., N, D], in length^(β-1); dimensionless and |V_i| <= 2 for β = 1. Differentiable in every
        tensor.

    Raises:
        ValueError: as `kernel_average`; on beta out of range, a single point without `neg`, neg_weights without neg.
    """
    check_beta(beta)
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_repulsion(x, neg, neg_weights)
    skip, neg = neg is None, x if neg is None else neg
    gradient = Scaled(Riesz(2 - beta), math.log(beta))  # of the kernel -|x - y|^β
    towards = mean_kernel_gradient(x, pos, gradient, pos_weights)
    away = mean_kernel_gradient(x, neg, gradient, neg_weights, skip_self=skip)
    return (towards - away).to(x.dtype)


def check_repulsion(x: Tensor, neg: Tensor | None, neg_weights: Tensor | None) -> None:
    """Refuse negatives that do not fit, weights without negatives, a point that nothing repels. Raises: ValueError."""
    if neg is not None:
        check_clouds(x, neg, None, False, ("x", "neg"))
    elif x.shape[-2] < 2 and sharding.current() is None:  # of shards, the union is checked
        raise ValueError(
            f"x is {list(x.shape)}: a single point has no others to repel it, and collapses to the median. "
            "Generate at least 2 per group, or pass neg."
        )
    refuse_lone_weights(neg, neg_weights)


def check_beta(beta: float) -> None:
    """Refuse an exponent of |x - y| that makes no strictly proper score. Raises: ValueError."""
    if isinstance(beta, Tensor) or not 0 < beta < 2:
        raise ValueError(
            f"beta = {beta!r}; wanted a number with 0 < beta < 2, 1 for the energy distance. At 2 only means count: "
            "every law with the mean of the data would be at rest."
        )
