r"""Autograd of the backends whose memory is linear in N + M: they keep (log_mass, shift) and walk the tiles again."""

from __future__ import annotations

import contextlib

import torch

from wgflow.sums import attention, keops, streaming
from wgflow.sums.choice import DENSE_PAIRS, Choice, pairs
from wgflow.sums.dense import dense_gradients
from wgflow.sums.tiles import where_mass

FORWARD = {"attention": attention.forward, "streaming": streaming.forward, "keops": keops.forward}
# KeOps would compile one more formula for each gradient: 8 to 12 seconds that the tiles do not take.
GRADIENTS = {
    "attention": attention.gradients,
    "streaming": streaming.gradients,
    "keops": streaming.gradients,
}


class LinearAverage(torch.autograd.Function):
    """Sums of a linear-memory backend. A second derivative exists where `auto` chose it and a dense one would fit."""

    @staticmethod
    def forward(ctx, x, y, log_weights, kernel, skip_self, choice: Choice):
        with exact_products(x.device):
            log_mass, shift = FORWARD[choice.backend](
                x, y, log_weights, kernel, skip_self, choice.dtype
            )
        ctx.kernel, ctx.skip_self, ctx.choice = kernel, skip_self, choice
        ctx.save_for_backward(x, y, log_weights, log_mass, shift)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        saved = ctx.saved_tensors
        none = (None, None, None)
        if torch.is_grad_enabled():
            if not ctx.choice.automatic or pairs(saved[0], saved[1]) > DENSE_PAIRS:
                raise RuntimeError(
                    f"create_graph=True through the {ctx.choice.backend} backend: its second derivative would hold "
                    'every pair of points. Pass backend="dense", or fewer points (automatic up to 4 million pairs).'
                )
            found = dense_gradients(saved, g_mass, g_shift, ctx.kernel, ctx.skip_self)
        else:
            g_shift = where_mass(g_shift, saved[3])
            samples = any(ctx.needs_input_grad[1:3])
            run = GRADIENTS[ctx.choice.backend]
            with exact_products(g_shift.device):
                found = run(
                    saved, g_mass, g_shift, ctx.kernel, ctx.skip_self, ctx.choice.dtype, samples
                )
        return *(
            g if g is None else g.to(t.dtype) for g, t in zip(found, saved, strict=False)
        ), *none


def exact_products(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast off: it would round the factors of the tiles to half precision."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
