r"""The dense backend: one matrix of pairs, and the only one with second derivatives of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from wgflow.sums.tiles import finish, grad_tile, sum_tile, where_mass


def dense(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) of float64 clouds."""
    return finish(x, sum_tile(x, y, log_weights, kernel, 0 if skip_self else None))


def dense_gradients(saved, g_mass, g_shift, kernel, skip_self):
    """(dx, dy, d log w) in float64, made of differentiable operations."""
    x, y, log_weights, log_mass, shift = saved
    w = None if log_weights is None else log_weights.double()
    own, g_shift = 0 if skip_self else None, where_mass(g_shift, log_mass)
    # Centred, as in every forward: products of coordinates lose the digits of a far cloud.
    origin = y.detach().double().mean(-2, keepdim=True)
    here, there = x.double() - origin, y.double() - origin
    dx, dy, dw = grad_tile(here, there, w, log_mass, shift, g_mass, g_shift, kernel, own)
    dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
    return (dx - g_shift).sum_to_size(x.shape), dy.sum_to_size(y.shape), dw


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
        found = dense_gradients(ctx.saved_tensors, g_mass, g_shift, ctx.kernel, ctx.skip_self)
        return *found, None, None
