r"""The maximum-likelihood field: every positive divides its pull among the generated points that could explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.fields.base import Field, refuse_negatives, store_kernels
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import check_clouds, responsibility_shift_f64

__all__ = ["LikelihoodField", "likelihood_field"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class LikelihoodField(Field):
    """`likelihood_field` as a value. It has no negatives: the points compete for the positives.

    Args:
        kernel: one kernel, or several whose fields are added.
    """

    kernel: Kernel | Sequence[Kernel]

    def __post_init__(self) -> None:
        store_kernels(self)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        refuse_negatives(self, neg, neg_weights)
        return likelihood_field(x, pos, kernel=self.kernel, pos_weights=pos_weights)


@checked
def likelihood_field(
    x: Tensor, pos: Tensor, *, kernel: Kernel | Sequence[Kernel], pos_weights: Tensor | None = None
) -> Tensor:
    r"""V_i = Σ_k R_ik (y_k - x_i) with R_ik = k(x_i, y_k) / Σ_j k(x_j, y_k), the share of point i in positive k.

    With `Gaussian(h)`, V_i = h² ∇_i Σ_k log q_h(y_k), where q_h is the KDE of the points: gradient ascent of the
    likelihood. Linear in the positives, hence unbiased with a single one; the logarithm of a mean over few points
    still gives rare modes too much weight.

    Args:
        x: [..., N, D] generated points.
        pos: [..., P, D] positives.
        kernel: one kernel, or several whose fields are added.
        pos_weights: [..., P], w >= 0, factors of the pull of each positive.

    Returns:
        [..., N, D], a length. A sum over positives, so it grows with P. Differentiable in every tensor.

    Raises:
        ValueError: as `kernel_average`.
    """
    check_clouds(x, pos, None, False, ("x", "pos"))
    kernel, *others = as_kernels(kernel)
    if others:
        each = [
            likelihood_field(x, pos, kernel=k, pos_weights=pos_weights) for k in (kernel, *others)
        ]
        return torch.stack(each).sum(0)
    return responsibility_shift_f64(x, pos, kernel=kernel, weights=pos_weights).to(x.dtype)
