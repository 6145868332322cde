r"""Velocities that are the exact gradient of a functional of the particles, or Stein's direction: units as stated.

Unlike Eq. 3, whose flow need not lower its own divergence on a finite cloud, `mmd_field` and `blob_field` are -N
times the particle gradient of a number (see `wgflow.functionals`), so that number falls along them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.fields import mean_pull
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import check_clouds, kernel_shift_f64, require_unsharded

__all__ = ["blob_field", "mmd_field", "stein_field"]


@checked
def mmd_field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    kernel: Kernel | Sequence[Kernel],
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    r"""The flow of the squared MMD: V_i = mean_k s_ik (y_k - x_i) - mean_{j≠i} s_ij (x_j - x_i), s the kernel's slope.

    V_i = -N ∇_i MMD²/2 (U-statistic), for any kernel or the sum of several (scales together: no one of them has to be
    right). Linear in the positives like `energy_field`, which is this field for the kernel -|x - y|.

    Args:
        x: [..., N, D]; pos: [..., P, D]; weights: only their ratios matter.
        neg: [..., M, D] what pushes; None: the points themselves, each leaving itself out (needs N >= 2).
        kernel: one, or several whose fields are added. A Gaussian's field has units 1/h² times a length.
    Returns: [..., N, D], in units of k / length: multiply by a squared bandwidth for a displacement. Differentiable.
    Raises: ValueError as `kernel_average`; no kernel; neg_weights without neg.
    """
    kernels = as_kernels(kernel)
    if neg is None and neg_weights is not None:
        raise ValueError(
            "neg_weights came without neg; the points themselves count equally. Pass neg=x with weights."
        )
    skip, others = neg is None, x if neg is None else neg
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, others, None, skip, ("x", "neg"))
    V = torch.zeros_like(x)
    for k in kernels:
        V = (
            V
            + mean_pull(x, pos, k.gradient_kernel, pos_weights)
            - mean_pull(x, others, k.gradient_kernel, neg_weights, skip_self=skip)
        )
    return V.to(x.dtype)


@checked
def blob_field(x: Tensor, score: Callable[[Tensor], Tensor], *, kernel: Kernel) -> Tensor:
    r"""The exact particle gradient of F = mean log q_h(x_i) - mean log p(x_i), q_h the KDE of the particles.

    -N ∇_i F = score(x_i) - ∇log q_h(x_i) - Σ_j (s_ij / ρ_j)(x_j - x_i), ρ_j = Σ_l k_jl: the plain score difference
    (Eq. 8) and one term more, the convolution that makes it a gradient (Carrillo, Craig, Patacchini 2019).

    Args:
        x: [..., N, D] particles, themselves included in q_h.
        score: ∇log p, [..., N, D] -> the same: `KDE(pos, kernel).score`, or that of a known density.
        kernel: Gaussian for the score difference of Eq. 8; any kernel with finite mass is a valid blob.
    Returns: [..., N, D], units 1/length (times h²: a displacement). Differentiable if `score` is.
    Raises: ValueError as `kernel_average`.
    """
    log_rho, _ = kernel_shift_f64(x, x, kernel=kernel)
    log_slope, shift = kernel_shift_f64(x, x, kernel=kernel.gradient_kernel)
    own = (log_slope - log_rho).exp().unsqueeze(-1) * shift
    log_back, back = kernel_shift_f64(x, x, kernel=kernel.gradient_kernel, log_weights=-log_rho)
    return (score(x) - kernel.covector(own + log_back.exp().unsqueeze(-1) * back)).to(x.dtype)


@checked
def stein_field(x: Tensor, score: Callable[[Tensor], Tensor], *, kernel: Kernel) -> Tensor:
    r"""SVGD (Liu, Wang 2016): φ_i = mean_j k_ij score(x_j) - mean_j s_ij (x_j - x_i): neighbours lend scores, and push.

    Args: x: [..., N, D]; score: ∇log p, [..., N, D] -> the same; kernel: one with a slope.
    Returns: [..., N, D], units of k / length. Differentiable if `score` is. Holds all pairs for the first of its sums.
    Raises: ValueError as `kernel_average`.
    """
    require_unsharded("stein_field")
    check_clouds(x, x, None, False)
    k = kernel.log_pairs(x, x).exp().to(x.dtype)
    return (k @ score(x) / x.shape[-2] - mean_pull(x, x, kernel.gradient_kernel, None)).to(x.dtype)
