r"""Autograd functions of the backends: all keep (log_mass, shift) alone and visit the pairs again for gradients."""

from __future__ import annotations

import contextlib

import torch

from wgflow.reductions import blocked, gemm, keops
from wgflow.reductions.dense import dense_gradients, dense_sum, mask_empty_rows
from wgflow.reductions.dispatch import DENSE_PAIRS, Choice, pairs

FORWARD = {"gemm": gemm.forward, "blocked": blocked.forward, "keops": keops.forward}
# KeOps would compile one more formula per gradient, 8 to 12 seconds that blocks do not take.
GRADIENTS = {"gemm": gemm.gradients, "blocked": blocked.gradients, "keops": blocked.gradients}


class DenseSum(torch.autograd.Function):
    """The dense sum. Its backward consists of differentiable operations, so second derivatives exist."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y, log_weights, kernel, skip_self):
        return dense_sum(x, y, log_weights, kernel, skip_self)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, log_weights, ctx.kernel, ctx.skip_self = inputs
        ctx.save_for_backward(x, y, log_weights, *output)

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        grads = dense_gradients(ctx.saved_tensors, g_mass, g_shift, ctx.kernel, ctx.skip_self)
        return *grads, None, None


class BlockedSum(torch.autograd.Function):
    """The sum of a backend with linear memory.

    Second derivatives are dense; they exist where `auto` selected the backend and the pairs fit into memory.
    """

    @staticmethod
    def forward(x, y, log_weights, kernel, skip_self, choice: Choice):
        run = FORWARD[choice.backend]
        with full_precision(x.device):
            return run(x, y, log_weights, kernel, skip_self, choice.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, log_weights, ctx.kernel, ctx.skip_self, ctx.choice = inputs
        ctx.save_for_backward(x, y, log_weights, *output)

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        saved, kernel, skip_self = ctx.saved_tensors, ctx.kernel, ctx.skip_self
        if torch.is_grad_enabled():
            if not ctx.choice.automatic or pairs(saved[0], saved[1]) > DENSE_PAIRS:
                raise RuntimeError(
                    f"create_graph=True through the {ctx.choice.backend} backend: its second derivative would hold "
                    'every pair of points. Pass backend="dense", or fewer points (automatic up to 4 million pairs).'
                )
            grads = dense_gradients(saved, g_mass, g_shift, kernel, skip_self)
        else:
            g_shift = mask_empty_rows(g_shift, saved[3])
            samples = any(ctx.needs_input_grad[1:3])
            run = GRADIENTS[ctx.choice.backend]
            with full_precision(g_shift.device):
                grads = run(saved, g_mass, g_shift, kernel, skip_self, ctx.choice.dtype, samples)
        rounded = [g if g is None else g.to(t.dtype) for g, t in zip(grads, saved, strict=False)]
        return *rounded, None, None, None


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Turn autocast off: it would round the factors of matrix products to half precision."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
