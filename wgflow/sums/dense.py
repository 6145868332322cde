r"""The dense backend: one matrix of pairs, and the only one with second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from wgflow.sums.tiles import finish, grad_tile, sum_tile


def dense(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    return finish(x, sum_tile(x, y, log_weights, kernel, 0 if skip_self else None))


class DenseAverage(torch.autograd.Function):
    """One matrix of pairs. Its backward is made of differentiable operations, so a second derivative exists."""

    @staticmethod
    def forward(ctx, x, y, log_weights, kernel, skip_self):
        log_mass, shift = dense(x, y, log_weights, kernel, skip_self)
        ctx.kernel, ctx.skip_self = kernel, skip_self
        ctx.save_for_backward(x, y, log_weights, log_mass, shift)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        x, y, log_weights, log_mass, shift = ctx.saved_tensors
        own = 0 if ctx.skip_self else None
        dx, dy, dw = grad_tile(x, y, log_weights, log_mass, shift, g_mass, g_shift, ctx.kernel, own)
        dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
        return (dx - g_shift).sum_to_size(x.shape), dy.sum_to_size(y.shape), dw, None, None
