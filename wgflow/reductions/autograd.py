r"""Autograd functions of the backends: all keep (log_mass, shift) alone and visit the pairs again for gradients."""

from __future__ import annotations

import contextlib

import torch

from wgflow.reductions import blocked, gemm, keops
from wgflow.reductions.blocked import gradients_at_zero, some_are_zero
from wgflow.reductions.dense import (
    combine_weights,
    dense_gradients,
    dense_sum,
    mask_empty_rows,
    within_range,
)
from wgflow.reductions.dispatch import DENSE_PAIRS, Choice, pairs
from wgflow.reductions.refine import FEW, imprecise_rows, refine, refined_gradients, without

FORWARD = {"gemm": gemm.forward, "blocked": blocked.forward, "keops": keops.forward}
# KeOps would compile one more formula per gradient, 8 to 12 seconds that blocks do not take.
GRADIENTS = {"gemm": gemm.gradients, "blocked": blocked.gradients, "keops": blocked.gradients}


class DenseSum(torch.autograd.Function):
    """The dense sum. Its backward consists of differentiable operations, so second derivatives exist."""

    @staticmethod
    def forward(ctx, x, y, log_weights, weights, kernel, skip_self):
        log_mass, shift = dense_sum(x, y, combine_weights(log_weights, weights), kernel, skip_self)
        ctx.kernel, ctx.skip_self = kernel, skip_self
        ctx.save_for_backward(x, y, log_weights, weights, log_mass, shift)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        grads = dense_gradients(
            ctx.saved_tensors, g_mass, g_shift, ctx.kernel, ctx.skip_self, ctx.needs_input_grad[3]
        )
        return *grads, None, None


class BlockedSum(torch.autograd.Function):
    """The sum of a backend with linear memory.

    Second derivatives are dense; they exist where `auto` selected the backend and the pairs fit into memory.
    """

    @staticmethod
    def forward(ctx, x, y, log_weights, weights, kernel, skip_self, choice: Choice):
        total = combine_weights(log_weights, weights)
        with full_precision(x.device):
            while True:
                sums = FORWARD[choice.backend](x, y, total, kernel, skip_self, choice.dtype)
                rows = imprecise_rows(x, *sums, choice)
                if rows is None or choice.instead is None or float(rows.double().mean()) <= FEW:
                    break
                choice = choice.instead
            log_mass, shift, _ = sums
            if rows is not None:
                refine(x, y, total, kernel, skip_self, rows, log_mass, shift)
        ctx.kernel, ctx.skip_self, ctx.choice = kernel, skip_self, choice
        ctx.save_for_backward(x, y, log_weights, weights, log_mass, shift, rows)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        *saved, rows = ctx.saved_tensors
        x, y, log_weights, weights, log_mass, shift = saved
        how, choice = (ctx.kernel, ctx.skip_self), ctx.choice
        if torch.is_grad_enabled():
            if not choice.automatic or pairs(x, y) > DENSE_PAIRS:
                raise RuntimeError(
                    f"create_graph=True through the {choice.backend} backend: its second derivative would hold "
                    'every pair of points. Pass backend="dense", or fewer points (automatic up to 4 million pairs).'
                )
            grads = dense_gradients(saved, g_mass, g_shift, *how, ctx.needs_input_grad[3])
        else:
            g_shift = mask_empty_rows(g_shift, log_mass)
            sums = log_mass, shift, g_mass, g_shift
            with full_precision(x.device):
                if ctx.needs_input_grad[3] and some_are_zero(weights):
                    grads = gradients_at_zero(x, y, log_weights, weights, *sums, *how)
                else:
                    samples = any(ctx.needs_input_grad[1:4])
                    grads = _gradients(
                        x, y, log_weights, weights, sums, rows, *how, choice, samples
                    )
        rounded = [g if g is None else g.to(t.dtype) for g, t in zip(grads, saved, strict=False)]
        return *rounded, None, None, None


def _gradients(x, y, log_weights, weights, sums, rows, kernel, skip_self, choice: Choice, samples):
    """(dx, dy, dl, dw) by the backend of the forward sums, and those of refined rows in float64."""
    log_mass, shift, g_mass, g_shift = sums
    at = (x, y, combine_weights(log_weights, weights), log_mass, shift)
    run, how = GRADIENTS[choice.backend], (kernel, skip_self)
    if rows is None:
        dx, dy, dL = run(at, g_mass, g_shift, *how, choice.dtype, samples)
    else:
        main = run(at, *without(rows, g_mass, g_shift), *how, choice.dtype, samples)
        more = refined_gradients(at, g_mass, g_shift, *how, rows, samples)
        dx, dy, dL = (
            a if a is None or b is None else a + b for a, b in zip(main, more, strict=True)
        )
    if weights is None or dL is None:
        return dx, dy, dL, None
    dl = None if log_weights is None else dL.sum_to_size(log_weights.shape)
    # Only read where no weight is 0.
    dw = dL.sum_to_size(weights.shape) / weights.double()
    return dx, dy, dl, within_range(dw, weights)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Turn autocast off: it would round the factors of matrix products to half precision."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
