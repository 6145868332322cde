r"""The streaming backend: blocks of pairs, memory linear in N + M forward and backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.sums.tiles import finish, grad_tile, merge, sum_tile

TILE_PAIRS = 1 << 18  # pairs in one streamed tile: 2 MB, near the size of a core's cache


def blocks(x: Tensor, y: Tensor) -> tuple[range, range, int, int]:
    """Starts and widths of row and column blocks, so that a tile holds about TILE_PAIRS pairs over the whole batch."""
    batch = max(1, math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])))
    side = max(1, math.isqrt(TILE_PAIRS // batch)) if batch < TILE_PAIRS else 1
    n, m = x.shape[-2], y.shape[-2]
    wide = min(m, side)
    tall = min(n, max(1, TILE_PAIRS // (batch * wide)))
    wide = min(m, max(1, TILE_PAIRS // (batch * tall)))
    return range(0, n, tall), range(0, m, wide), tall, wide


def tiles(x, y, log_weights, skip_self):
    """(rows, columns, log weights of these columns, diagonal) of every tile, column by column within a row of tiles."""
    rows, columns, tall, wide = blocks(x, y)
    for i in rows:
        for j in columns:
            part = None if log_weights is None else log_weights[..., j : j + wide]
            own = i - j if skip_self and i < j + wide and j < i + tall else None
            yield slice(i, i + tall), slice(j, j + wide), part, own


def stream(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    done: list[tuple[Tensor, Tensor]] = []
    sums, rows = None, None
    for r, c, part, own in tiles(x, y, log_weights, skip_self):
        tile = sum_tile(x[..., r, :], y[..., c, :], part, kernel, own)
        if r != rows:
            if sums is not None:
                done.append(finish(x[..., rows, :], sums))
            sums, rows = tile, r
        else:
            sums = merge(sums, tile)  # type: ignore[arg-type]
    done.append(finish(x[..., rows, :], sums))  # type: ignore[arg-type]
    return torch.cat([d[0] for d in done], -1), torch.cat([d[1] for d in done], -2)


class StreamingAverage(torch.autograd.Function):
    """Blocks. Memory O(N + M) forward and backward; a second derivative would not be, so it is refused."""

    @staticmethod
    def forward(ctx, x, y, log_weights, kernel, skip_self):
        log_mass, shift = stream(x, y, log_weights, kernel, skip_self)
        ctx.kernel, ctx.skip_self = kernel, skip_self
        ctx.save_for_backward(x, y, log_weights, log_mass, shift)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True through the streaming backend: its second derivative would hold every pair of "
                'points. Pass backend="dense", or fewer points (dense is automatic up to 4 million pairs).'
            )
        x, y, log_weights, log_mass, shift = ctx.saved_tensors
        batch = log_mass.shape[:-1]
        dx = -g_shift
        dy = torch.zeros(batch + y.shape[-2:], dtype=y.dtype, device=y.device)
        dw = torch.zeros(batch + y.shape[-2:-1], dtype=y.dtype, device=y.device)
        for r, c, part, own in tiles(x, y, log_weights, ctx.skip_self):
            at = (log_mass[..., r], shift[..., r, :], g_mass[..., r], g_shift[..., r, :])
            dx_tile, dy_tile, dw_tile = grad_tile(x[..., r, :], y[..., c, :], part, *at, ctx.kernel, own)
            dx[..., r, :] += dx_tile
            dy[..., c, :] += dy_tile
            dw[..., c] += dw_tile
        dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
        return dx.sum_to_size(x.shape), dy.sum_to_size(y.shape), dw, None, None
