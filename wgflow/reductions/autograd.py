r"""Autograd functions of the backends: all keep (log_mass, shift) alone and visit the pairs again for gradients."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from wgflow.kernels import Gaussian, Matern, RationalQuadratic, unscaled
from wgflow.reductions import blocked, float32, gemm, keops
from wgflow.reductions.blocked import gradients_at_zero, some_are_zero
from wgflow.reductions.dense import (
    combine_weights,
    dense_gradients,
    dense_sum,
    mask_empty_rows,
    within_range,
)
from wgflow.reductions.dispatch import DENSE_PAIRS, Choice, pairs
from wgflow.reductions.refine import FEW, Part, imprecise_rows, refine, refined_gradients


def sum_blocks(x, y, log_weights, kernel, skip_self, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the "blocked" backend in `dtype`."""
    module = float32 if dtype == torch.float32 else blocked
    return module.forward(x, y, log_weights, kernel, skip_self)


FORWARD = {"gemm": gemm.forward, "blocked": sum_blocks, "keops": keops.forward}
# KeOps would compile one more formula per gradient, 8 to 12 seconds that blocks do not take.
GRADIENTS = {"gemm": gemm.gradients, "blocked": blocked.gradients, "keops": blocked.gradients}


class DenseSum(torch.autograd.Function):
    """The dense sum. Its backward consists of differentiable operations, so second derivatives exist."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y, log_weights, weights, kernel, skip_self):
        return dense_sum(x, y, combine_weights(log_weights, weights), kernel, skip_self)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, log_weights, weights, ctx.kernel, ctx.skip_self = inputs
        ctx.save_for_backward(x, y, log_weights, weights, *output)

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
    def forward(x, y, log_weights, weights, kernel, skip_self, choice: Choice):
        """(log_mass, shift, refined rows or None, the choice in the end)."""
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
        return log_mass, shift, rows, choice

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, log_weights, weights, ctx.kernel, ctx.skip_self, _ = inputs
        log_mass, shift, rows, ctx.choice = output
        if rows is not None:
            ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(x, y, log_weights, weights, log_mass, shift, rows)

    @staticmethod
    def backward(ctx, g_mass, g_shift, *_):  # type: ignore[override]
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
    # Elsewhere the gradient kernel is infinite at 0: near pairs need more digits than their sums do.
    smooth = isinstance(unscaled(kernel)[0], Gaussian | Matern | RationalQuadratic)
    dtype = choice.dtype if smooth else torch.float64
    if rows is None or dtype != choice.dtype:
        dx, dy, dL = run(at, g_mass, g_shift, *how, dtype, samples)
    else:
        part = Part(x, y, at[2], rows, skip_self)
        main = run(at, *part.remove(g_mass, g_shift), *how, choice.dtype, samples)
        more = refined_gradients(part, at, g_mass, g_shift, *how, samples)
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
