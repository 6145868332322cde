r"""The drifting field of DFP Eq. 3: the difference of two mean shifts, weighted for an f-divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.divergences import Divergence, ReverseKL
from wgflow.fields.base import Field, refuse_lone_weights, store_kernels
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import (
    check_clouds,
    kernel_shift_f64,
    log_total,
)

__all__ = ["DriftingField", "drifting_field", "mean_shift"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class DriftingField(Field):
    """`drifting_field` as a `Field`. Without `neg`, the negatives are the points, own point included (Eq. 3).

    Args:
        kernel: one kernel, or several whose fields are added.
        divergence: the f-divergence whose gradient flow this is.
        skip_self: leave each point out of its own negatives when the negatives are the points; no effect if `neg` is
            passed.
    """

    kernel: Kernel | Sequence[Kernel]
    divergence: Divergence = ReverseKL()  # noqa: RUF009 - a frozen value
    skip_self: bool = False

    def __post_init__(self) -> None:
        store_kernels(self)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        refuse_lone_weights(neg, neg_weights)
        return drifting_field(
            x,
            pos,
            x if neg is None else neg,
            kernel=self.kernel,
            divergence=self.divergence,
            pos_weights=pos_weights,
            neg_weights=neg_weights,
            skip_self=self.skip_self and neg is None,
        )


@checked
def mean_shift(
    x: Tensor, y: Tensor, *, kernel: Kernel, weights: Tensor | None = None, skip_self: bool = False
) -> Tensor:
    r"""Step from `x` to the kernel-weighted mean of the samples: Σ_j W_j y_j - x (Cheng 1995).

    With `Gaussian(h)` it is h² times the KDE score (DFP Eq. 7); with other kernels it ascends the density of the
    shadow kernel.

    Args:
        x: [..., N, D] points.
        y: [..., M, D] samples.
        kernel: its length scale is in the units of x.
        weights: [..., M], w >= 0, or None. Only ratios of weights matter; derivatives exist at 0 too.
        skip_self: leave y[i] out for x[i]. Only meaningful when y *is* x.

    Returns:
        [..., N, D], a length. Differentiable in every tensor.

    Raises:
        ValueError: as `kernel_average`; on weights that are negative or all zero.
    """
    shift = kernel_shift_f64(x, y, kernel=kernel, weights=weights, skip_self=skip_self)[1]
    return shift.to(x.dtype)


@checked
def drifting_field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    kernel: Kernel | Sequence[Kernel],
    divergence: Divergence = ReverseKL(),  # noqa: B008 - a frozen value
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    skip_self: bool = False,
) -> Tensor:
    r"""V = w(log q_h/p_h) (V⁺ - V⁻): attraction by `pos`, repulsion by `neg` (DFP Eq. 3, where w = 1).

    V⁺ and V⁻ are the mean shifts to `pos` and `neg`. With `Gaussian(h)`, V = h² w (∇log p_h - ∇log q_h) for their
    KDEs p_h and q_h: h² times the W2 gradient flow of the divergence D(q_h || p_h), whose weight is w(log r) =
    r f''(r). Other kernels have no such identity: see `kernel.shadow`.

    Args:
        x: [..., N, D] points where the field is evaluated.
        pos: [..., P, D] positives.
        neg: [..., M, D] negatives.
        kernel: its length scale is in the units of x, and so is the result. Several: the sum of their fields.
        divergence: the divergence to descend. Densities are normalised, so w does not depend on the sizes of the
            sets or the scale of the weights.
        pos_weights: [..., P], w >= 0, of which only ratios matter.
        neg_weights: [..., M], likewise.
        skip_self: leave neg[i] out for x[i] (leave-one-out KDE). Only meaningful when `neg` *is* `x`. Particles
            that follow such a field expand without bound, so the default is the plain KDE.

    Returns:
        [..., N, D], a length. Differentiable in every tensor; losses detach it, this function does not.

    Raises:
        ValueError: if a last dimension differs, a set is empty, weights are negative or all zero.
    """
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, neg, None, skip_self, ("x", "neg"))
    kernel, *others = as_kernels(kernel)
    if others:
        settings = {"pos_weights": pos_weights, "neg_weights": neg_weights, "skip_self": skip_self}
        each = [
            drifting_field(x, pos, neg, kernel=k, divergence=divergence, **settings)
            for k in (kernel, *others)
        ]
        return torch.stack(each).sum(0)
    log_p, towards = kernel_shift_f64(x, pos, kernel=kernel, weights=pos_weights)
    log_q, away = kernel_shift_f64(x, neg, kernel=kernel, weights=neg_weights, skip_self=skip_self)
    V = towards - away
    if isinstance(divergence, ReverseKL):
        return V.to(x.dtype)
    log_q = log_q - log_total(neg, neg_weights, skip_self)
    log_ratio = log_q - (log_p - log_total(pos, pos_weights))
    # Compact kernels: out of reach of one cloud or both, the ratio is infinite or NaN. Where V = 0 the weight is
    # irrelevant; masked before the product, so that a finite weight there keeps the gradient of V.
    nowhere = ~log_ratio.isfinite() & (V == 0).all(-1)
    weight = divergence.weight(log_ratio.masked_fill(nowhere, 0.0))
    return (weight.unsqueeze(-1) * V).to(x.dtype)
