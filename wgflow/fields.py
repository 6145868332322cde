r"""Velocity fields that move generated points towards data, every one of them algebra on the one reduction.

Which to use when: `drifting_field` is the paper's Eq. 3 and needs several positives per group (with one it
collapses to the mean); `likelihood_field`, `energy_field` and `mmd_field` are linear in the positives, so one per
state is enough, and the last two have their minimum at the data's own law; `balanced_field` is the normalisation
of the released drifting code. All return a displacement in the units of `x`; none of them detaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.divergences import Divergence, ReverseKL
from wgflow.kernels import Kernel, Riesz, Scaled, as_kernels
from wgflow.reductions import (
    check_clouds,
    check_no_nan,
    kernel_shift,
    kernel_shift_f64,
    log_of_weights,
    log_total,
    require_unsharded,
)

__all__ = [
    "drifting_field",
    "energy_field",
    "likelihood_field",
    "mean_shift",
    "spread_ratio",
]


@checked
def mean_shift(
    x: Tensor, y: Tensor, *, kernel: Kernel, weights: Tensor | None = None, skip_self: bool = False
) -> Tensor:
    r"""Step from `x` to the kernel-weighted mean of the samples: Σ_j W_j y_j - x (Cheng 1995).

    With `Gaussian(h)` it is h² times the KDE score (DFP Eq. 7); with other kernels it climbs the density of
    the shadow.

    Args:
        x: [..., N, D]; y: [..., M, D]; weights: [..., M], w >= 0, or None. Only ratios of weights matter.
        skip_self: leave y[i] out for x[i]. Only meaningful when y *is* x.
    Returns: [..., N, D], a length. Differentiable in every tensor.
    Raises: ValueError as `kernel_average`; weights negative or all zero.
    """
    return kernel_shift(
        x, y, kernel=kernel, log_weights=log_of_weights(weights), skip_self=skip_self
    )[1]


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
    r"""Velocity pulling `x` towards `pos` and away from `neg`: V = gate(log q_h/p_h) (V⁺ - V⁻) (DFP Eq. 3, gate 1).

    With `Gaussian(h)`, V = h² gate (∇log p_h - ∇log q_h) for the KDEs p_h, q_h of `pos`, `neg`: h² times the
    W2 gradient flow of the divergence D(q_h || p_h). Other kernels have no such identity: see
    `kernel.shadow`.

    Args:
        x: [..., N, D] points where the field is read; pos: [..., P, D]; neg: [..., M, D]; weights [..., P]
            and [..., M].
        kernel: its lengths are in the units of `x`; so is the result. Several: the sum of their fields.
        divergence: whose flow. Densities are normalised: weights and set sizes leave
            the gate alone.
        skip_self: leave neg[i] out for x[i] (leave-one-out KDE). Only meaningful when `neg` *is* `x`; such
            groups of particles expand without bound in a simulation, so the default keeps the plain KDE.
    Returns: [..., N, D]. Differentiable in every tensor; losses detach it, this function does not.
    Raises: ValueError if a last dimension differs, a set is empty, weights are negative or all zero.
    """
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, neg, None, skip_self, ("x", "neg"))
    kernel, *others = as_kernels(kernel)
    if others:
        weights = {"pos_weights": pos_weights, "neg_weights": neg_weights, "skip_self": skip_self}
        each = [
            drifting_field(x, pos, neg, kernel=k, divergence=divergence, **weights)
            for k in (kernel, *others)
        ]
        return torch.stack(each).sum(0)
    log_wp, log_wn = log_of_weights(pos_weights), log_of_weights(neg_weights)
    log_p, towards = kernel_shift_f64(x, pos, kernel=kernel, log_weights=log_wp)
    log_q, away = kernel_shift_f64(x, neg, kernel=kernel, log_weights=log_wn, skip_self=skip_self)
    V = towards - away
    if isinstance(divergence, ReverseKL):
        return V.to(x.dtype)
    log_ratio = (log_q - log_total(neg, log_wn, skip_self)) - (log_p - log_total(pos, log_wp))
    # Compact kernels: out of reach of one cloud or both the ratio is infinite or NaN. Where V = 0 there is nothing to
    # gate; masked before the product, so that a finite gate there keeps the gradient of V.
    nowhere = ~log_ratio.isfinite() & (V == 0).all(-1)
    gate = divergence.weight(log_ratio.masked_fill(nowhere, 0.0))
    return (gate.unsqueeze(-1) * V).to(x.dtype)


@checked
def likelihood_field(
    x: Tensor, pos: Tensor, *, kernel: Kernel | Sequence[Kernel], pos_weights: Tensor | None = None
) -> Tensor:
    r"""Each positive shares itself among the points: V_i = Σ_k R_ik (y_k - x_i), R_ik = k(x_i, y_k) / Σ_j k(x_j, y_k).

    With `Gaussian(h)`, V_i = -h² ∇_i of Σ_k -log q_h(y_k), q_h the KDE of the points: maximum likelihood.
    Linear in the positives, so it is unbiased with one of them; the log of a mean over few points still
    over-weights rare modes.

    Args:
        x: [..., N, D] generated points; pos: [..., P, D].
        kernel: one, or several: the sum of their fields.
        pos_weights: [..., P], w >= 0, multiplies each positive's pull.
    Returns: [..., N, D], a length; a sum over positives, so it grows with P. Differentiable in every tensor.
    Raises: ValueError as `kernel_average`.
    """
    check_clouds(x, pos, None, False, ("x", "pos"))
    kernel, *others = as_kernels(kernel)
    if others:
        each = [
            likelihood_field(x, pos, kernel=k, pos_weights=pos_weights) for k in (kernel, *others)
        ]
        return torch.stack(each).sum(0)
    log_q, _ = kernel_shift_f64(
        pos, x, kernel=kernel
    )  # column sums: how well the points cover each positive
    # Compact kernels: a positive that no point reaches pulls none, whatever finite weight it has.
    log_q = torch.where(log_q == -math.inf, 0.0, log_q)
    log_weights = -log_q if pos_weights is None else log_of_weights(pos_weights) - log_q  # type: ignore[operator]
    log_pull, shift = kernel_shift_f64(x, pos, kernel=kernel, log_weights=log_weights)
    return (log_pull.exp().unsqueeze(-1) * shift).to(x.dtype)


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
    r"""Unit pulls, unit pushes, the energy distance's flow: V_i = mean_k unit(y_k - x_i) - mean_{j≠i} unit(x_j - x_i).

    V_i = -N ∇_i of the energy score's U-statistic mean|x-y|^β - mean_{i≠j}|x-x'|^β / 2: each unit vector times
    β r^(β-1), 1 for β = 1. No bandwidth, strictly proper for every β, linear in the positives: unbiased with one
    positive and any N >= 2. The same for a kernel with a bandwidth, or for several: `mmd_field`.

    Args:
        x: [..., N, D] generated points; pos: [..., P, D]; weights [..., P], [..., M]: w >= 0, only their
            ratios matter.
        neg: [..., M, D] what pushes. None: the points themselves, each leaving itself out (needs N >= 2).
        beta: 0 < β < 2. Smaller weighs fine detail more and is noisier; below 1 near pairs pull without bound (as
            r^(β-1)). Coincident points have no direction and pull nothing, whatever β.
    Returns: [..., N, D], in length^(β-1) whatever the units of x (β = 1: |V_i| <= 2; scale it by a length for a
        displacement). Differentiable.
    Raises: ValueError as `kernel_average`; beta out of range; one lone point without `neg`; neg_weights without `neg`.
    """
    check_beta(beta)
    slope = Scaled(Riesz(2 - beta), math.log(beta))  # of the kernel -r^β
    check_clouds(x, pos, None, False, ("x", "pos"))
    if neg is None:
        if x.shape[-2] < 2:
            raise ValueError(
                f"x is {list(x.shape)}: a lone point has nothing to keep away from and collapses to the median. "
                "Generate at least 2 per group, or pass neg."
            )
        if neg_weights is not None:
            raise ValueError(
                "neg_weights came without neg; the points themselves count equally. Pass neg=x with weights."
            )
        V = mean_pull(x, pos, slope, pos_weights) - mean_pull(x, x, slope, None, skip_self=True)
        return V.to(x.dtype)
    check_clouds(x, neg, None, False, ("x", "neg"))
    return (mean_pull(x, pos, slope, pos_weights) - mean_pull(x, neg, slope, neg_weights)).to(
        x.dtype
    )


def check_beta(beta: float) -> None:
    """Refuse an exponent of |x - y| that makes no strictly proper score. Raises: ValueError."""
    if isinstance(beta, Tensor) or not 0 < beta < 2:
        raise ValueError(
            f"beta = {beta!r}; wanted a number with 0 < beta < 2, 1 for the energy distance. At 2 only means count: "
            "every law with the mean of the data would be at rest."
        )


@checked
def spread_ratio(x: Tensor, pos: Tensor) -> Tensor:
    """E|x - x'| / E|x - y| over the whole batch: below about .2 a generator has collapsed. x [..., N, D], pos
    [..., P, D].

    Returns: a scalar without gradient; a matched cloud has 1 or somewhat less. Raises: ValueError when N < 2, on NaN.
    """
    require_unsharded("spread_ratio")
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, x, None, True, ("x", "x"))
    x, pos, n = x.detach(), pos.detach(), x.shape[-2]
    spread = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").mean() * (n / (n - 1))
    reach = torch.cdist(x, pos, compute_mode="donot_use_mm_for_euclid_dist").mean()
    check_no_nan(spread + reach, "x or pos")
    return spread / reach.clamp_min(torch.finfo(x.dtype).tiny)


def mean_pull(
    x: Tensor, y: Tensor, slope: Kernel, weights: Tensor | None, skip_self: bool = False
) -> Tensor:
    """mean_j s(x, y_j) covector(y_j - x): the gradient at x of the mean of the kernel whose slope is s."""
    log_weights = log_of_weights(weights)
    log_mass, shift = kernel_shift_f64(
        x, y, kernel=slope, log_weights=log_weights, skip_self=skip_self
    )
    mean = (log_mass - log_total(y, log_weights, skip_self)).exp().unsqueeze(-1)
    return mean * slope.covector(shift)
