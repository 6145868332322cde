r"""Fields that are exact gradients of a functional of the particles (MMD, blob), and Stein's direction.

Unlike Eq. 3, whose flow need not decrease its own divergence on a finite cloud, `mmd_field` and `blob_field` are -N
times the gradient of a functional of the particles (see `wgflow.functionals`), which therefore decreases along them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.density import KDE
from wgflow.fields.base import (
    Field,
    mean_kernel_gradient,
    refuse_lone_weights,
    refuse_negatives,
    store_kernels,
)
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import check_clouds, kernel_shift_f64, require_unsharded

__all__ = ["BlobField", "MMDField", "SteinField", "blob_field", "mmd_field", "stein_field"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class MMDField(Field):
    """`mmd_field` as a value. Without `neg` a point is left out of its own negatives.

    Args:
        kernel: one kernel, or several whose fields are added.
    """

    kernel: Kernel | Sequence[Kernel]

    def __post_init__(self) -> None:
        store_kernels(self)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        return mmd_field(
            x, pos, neg, kernel=self.kernel, pos_weights=pos_weights, neg_weights=neg_weights
        )


@dataclass(frozen=True, repr=False)
class _ScoreField(Field):
    """A sum over kernels of a field that needs ∇log p only: `score`, or that of the KDE of the positives."""

    kernel: Kernel | Sequence[Kernel]
    score: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        store_kernels(self)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        refuse_negatives(self, neg, neg_weights)
        fields = []
        for kernel in as_kernels(self.kernel):
            score = self.score or KDE(pos, kernel, pos_weights).score
            fields.append(self._field(x, score, kernel))
        return fields[0] if len(fields) == 1 else torch.stack(fields).sum(0)

    def _field(self, x: Tensor, score: Callable[[Tensor], Tensor], kernel: Kernel) -> Tensor:
        raise NotImplementedError

    def check_scalable(self) -> None:
        if self.score is not None:
            raise ValueError(
                f"{type(self).__name__} has a score of its own, whose units stay those of x; relative lengths need "
                "score=None, the score of the positives."
            )


@checked_constructor
@dataclass(frozen=True, repr=False)
class BlobField(_ScoreField):
    """`blob_field` as a value. It has no negatives: the points repel each other, each included in its own density.

    Args:
        kernel: of the KDE of the points, and of that of the positives; several: the sum of their fields.
        score: ∇log p of a known density, [..., N, D] -> [..., N, D]; `pos` is then not used. None: the score of the
            KDE of the positives.
    """

    def _field(self, x: Tensor, score: Callable[[Tensor], Tensor], kernel: Kernel) -> Tensor:
        return blob_field(x, score, kernel=kernel)


@checked_constructor
@dataclass(frozen=True, repr=False)
class SteinField(_ScoreField):
    """`stein_field` as a value. It has no negatives: the points repel each other, each included (its term is 0).

    Args:
        kernel: of the particles, and of the KDE of the positives; several: the sum of their fields.
        score: ∇log p of a known density, [..., N, D] -> [..., N, D]; `pos` is then not used. None: the score of the
            KDE of the positives.
    """

    def _field(self, x: Tensor, score: Callable[[Tensor], Tensor], kernel: Kernel) -> Tensor:
        return stein_field(x, score, kernel=kernel)


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
    r"""V_i = mean_k ∇k(x_i, y_k) - mean_{j≠i} ∇k(x_i, x_j): the gradient flow of the squared MMD (Arbel et al. 2019).

    V_i = -N ∇_i MMD²/2 (U-statistic), for any kernel or the sum of several. Linear in the positives like
    `energy_field`, which is this field for the kernel -|x - y|.

    Args:
        x: [..., N, D] generated points.
        pos: [..., P, D] positives.
        neg: [..., M, D] negatives. None: the points themselves, each leaving itself out (needs N >= 2).
        kernel: one kernel, or several whose fields are added.
        pos_weights: [..., P], w >= 0, of which only ratios matter.
        neg_weights: [..., M], likewise.

    Returns:
        [..., N, D], in units of k per length; times a squared bandwidth, a displacement. Differentiable in
        every tensor.

    Raises:
        ValueError: as `kernel_average`; on no kernel, or neg_weights without neg.
    """
    kernels = as_kernels(kernel)
    refuse_lone_weights(neg, neg_weights)
    skip, others = neg is None, x if neg is None else neg
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(x, others, None, skip, ("x", "neg"))
    V = torch.zeros_like(x)
    for k in kernels:
        towards = mean_kernel_gradient(x, pos, k.gradient_kernel, pos_weights)
        V = (
            V
            + towards
            - mean_kernel_gradient(x, others, k.gradient_kernel, neg_weights, skip_self=skip)
        )
    return V.to(x.dtype)


@checked
def blob_field(x: Tensor, score: Callable[[Tensor], Tensor], *, kernel: Kernel) -> Tensor:
    r"""-N ∇_i F of F = mean log q_h(x_i) - mean log p(x_i), q_h the KDE of the particles: the blob method.

    -N ∇_i F = score(x_i) - ∇log q_h(x_i) - Σ_j ∇k(x_i, x_j) / ρ_j with ρ_j = Σ_l k(x_j, x_l): the score difference
    of Eq. 8 and one more term, which makes it a gradient (Carrillo, Craig and Patacchini 2019).

    Args:
        x: [..., N, D] particles, each included in q_h.
        score: ∇log p, [..., N, D] -> [..., N, D]: `KDE(pos, kernel).score`, or that of a known density.
        kernel: Gaussian for the score difference of Eq. 8; any kernel of finite mass is valid.

    Returns:
        [..., N, D], in 1/length; times h², a displacement. Differentiable if `score` is.

    Raises:
        ValueError: as `kernel_average`.
    """
    log_rho, _ = kernel_shift_f64(x, x, kernel=kernel)
    log_slope, shift = kernel_shift_f64(x, x, kernel=kernel.gradient_kernel)
    own = (log_slope - log_rho).exp().unsqueeze(-1) * shift
    log_back, back = kernel_shift_f64(x, x, kernel=kernel.gradient_kernel, log_weights=-log_rho)
    return (score(x) - kernel.covector(own + log_back.exp().unsqueeze(-1) * back)).to(x.dtype)


@checked
def stein_field(x: Tensor, score: Callable[[Tensor], Tensor], *, kernel: Kernel) -> Tensor:
    r"""φ_i = mean_j k_ij score(x_j) - mean_j ∇k(x_i, x_j): Stein variational gradient descent (Liu and Wang 2016).

    Args:
        x: [..., N, D] particles.
        score: ∇log p, [..., N, D] -> [..., N, D].
        kernel: any kernel with a gradient.

    Returns:
        [..., N, D], in units of k per length. Differentiable if `score` is. The first sum holds all pairs in memory.

    Raises:
        ValueError: as `kernel_average`.
    """
    require_unsharded("stein_field")
    check_clouds(x, x, None, False)
    k = kernel.log_pairs(x.double(), x.double()).exp()
    repulsion = mean_kernel_gradient(x, x, kernel.gradient_kernel, None)
    # In float64, which autocast does not touch.
    return (k @ score(x).double() / x.shape[-2] - repulsion).to(x.dtype)
