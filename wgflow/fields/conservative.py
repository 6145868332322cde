r"""The gradient of the log ratio of two kernel density estimates, for any kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.density import kde_score
from wgflow.fields.base import Field, refuse_lone_weights, store_kernels
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import check_clouds

__all__ = ["ConservativeField", "conservative_field"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class ConservativeField(Field):
    """`conservative_field` as a value. Without `neg`, the negatives are the points, own point included.

    Args:
        kernel: one kernel, or several whose fields are added.
    """

    kernel: Kernel | Sequence[Kernel]

    def __post_init__(self) -> None:
        store_kernels(self)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        refuse_lone_weights(neg, neg_weights)
        return conservative_field(
            x,
            pos,
            x if neg is None else neg,
            kernel=self.kernel,
            pos_weights=pos_weights,
            neg_weights=neg_weights,
        )


@checked
def conservative_field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    kernel: Kernel | Sequence[Kernel],
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    r"""V = ∇log p_k - ∇log q_k, the score difference of the KDEs of `pos` and `neg` under any kernel k.

    The kernel-gradient drift of Esteban-Casadevall et al. 2026 (2605.10727). In x, V is the gradient of log p_k/q_k,
    with `neg` fixed. `drifting_field` is so for Gaussians only, where it is h² V; the conservative field of Franz et
    al. 2026 (2604.06333) for a mean shift under k is this one under `k.shadow`.

    Args:
        x: [..., N, D] points where the field is evaluated.
        pos: [..., P, D] positives.
        neg: [..., M, D] negatives.
        kernel: its length scale is in the units of x. Several: the sum of their fields.
        pos_weights: [..., P], w >= 0, of which only ratios matter.
        neg_weights: [..., M], likewise.

    Returns:
        [..., N, D], in 1/length; times a squared bandwidth, a displacement. Differentiable in every tensor.

    Raises:
        ValueError: as `kernel_average`; on weights that are negative or all zero.
    """
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, neg, None, False, ("x", "neg"))
    each = [
        kde_score(x, pos, k, pos_weights) - kde_score(x, neg, k, neg_weights)
        for k in as_kernels(kernel)
    ]
    return torch.stack(each).sum(0).to(x.dtype)
