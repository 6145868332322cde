"""Pairwise distances by direct differences, differentiable as often as wanted, also at 0 and in half precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wgflow.arguments import widened

__all__ = ["distances", "safe_root", "sq_distances"]


class _SquaredDistances(torch.autograd.Function):
    """Squared distances. `torch.cdist` has no second derivative, and under `torch.func.vmap` a wrong first one.

    The derivative of its square is a product of matrices.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _squares(x, y)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):  # type: ignore[override]
        x, y = ctx.saved_tensors
        # Σ_j g_ij (x_i - y_j) is a difference of two sums: float64 and a common origin keep its digits, and autocast
        # leaves float64 alone. The origin is the sample that counts most, where a mean would follow distant samples.
        nearest = g.detach().abs().sum(-2).argmax(-1)
        whole = y.detach().expand(*g.shape[:-2], *y.shape[-2:])
        origin = torch.take_along_dim(whole, nearest[..., None, None], -2).double()
        a, b, g = x.double() - origin, y.double() - origin, g.double()
        dx = 2 * (a * g.sum(-1).unsqueeze(-1) - g @ b)
        dy = 2 * (b * g.sum(-2).unsqueeze(-1) - g.mT @ a)
        return dx.sum_to_size(x.shape).to(x.dtype), dy.sum_to_size(y.shape).to(y.dtype)


def sq_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|² for x [..., N, D] and y [..., M, D]: [..., N, M], in float32 at least."""
    x = widened(x)
    y = y.to(x.dtype)
    if may_differentiate(x, y):
        return _SquaredDistances.apply(x, y)  # type: ignore[return-value]
    return _squares(x, y)  # apply alone takes longer than the distances of a small cloud


def _squares(x: Tensor, y: Tensor) -> Tensor:
    # Direct differences. |x|² - 2xy + |y|² is one matrix product and faster, but cancels: eps |x|²/h² in the logit.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, as `sq_distances`; coincident points have derivative 0."""
    return safe_root(sq_distances(x, y))


def safe_root(sq: Tensor) -> Tensor:
    """The square root in a new tensor, with derivative 0 where it is 0: a length that vanishes has no direction."""
    if not may_differentiate(sq):
        return sq.sqrt()
    # Zeros are replaced before the root: a masked infinity would still give 0 * inf = NaN.
    zero = sq == 0
    return torch.where(zero, 1.0, sq).sqrt().masked_fill(zero, 0.0)


def may_differentiate(*tensors: Tensor) -> bool:
    """Return False if no derivative with respect to these tensors can be taken."""
    required = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if required or torch.compiler.is_compiling():
        return required
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        return True  # in forward mode, which the functions refuse
    # A tensor that `torch.func.vmap` maps over does not say that a transform outside of it takes a derivative.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # type: ignore[attr-defined]
    return any(wrapped(t) for t in tensors)
