r"""The streaming backend: blocks of pairs by direct differences, any kernel, memory linear in N + M."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.kernels import Kernel
from wgflow.sums.flat import Gradients, flatten, loop, unflatten
from wgflow.sums.tiles import finish, grad_tile, merge, sum_tile

TILE_PAIRS = (
    1 << 17
)  # pairs in one tile and thread: 1 MB in float64, the size of a core's level-2 cache
TILE_PAIRS_GPU = 1 << 23


def tile(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """(rows, columns, batch elements) of a tile of flat clouds, about TILE_PAIRS pairs in all."""
    pairs = TILE_PAIRS * torch.get_num_threads() if x.device.type == "cpu" else TILE_PAIRS_GPU
    n, m = x.shape[-2], y.shape[-2]
    wide = min(m, max(1, math.isqrt(pairs), pairs // max(n, 1)))
    tall = min(n, max(1, pairs // wide))
    return tall, wide, max(1, pairs // max(1, n * m))


def columns(
    y: Tensor, log_weights: Tensor | None, wide: int
) -> Iterator[tuple[slice, Tensor | None]]:
    for j in range(0, y.shape[-2], wide):
        c = slice(j, j + wide)
        yield c, None if log_weights is None else log_weights[..., c]


def diagonal(first: int | None, c: slice, rows: int) -> int | None:
    """Offset of the own entries (i = j) in a tile whose rows start at `first`; None where it holds none."""
    return None if first is None or not c.start - rows < first < c.stop else first - c.start


def rows(x, y, log_weights, kernel: Kernel, first: int | None, dtype, wide: int | None = None):
    """(log_mass, shift) of a block of rows in float64, its tiles in `dtype`. `first`: its own sample, left out."""
    origin = y.mean(-2, keepdim=True).double()
    here = (x.double() - origin).to(dtype)
    sums = None
    for c, part in columns(y, log_weights, wide or tile(x, y)[1]):
        there = (y[..., c, :].double() - origin).to(dtype)
        part = None if part is None else part.to(dtype)
        top, total, moment = sum_tile(here, there, part, kernel, diagonal(first, c, x.shape[-2]))
        new = (top.double(), total.double(), moment.double())
        sums = new if sums is None else merge(sums, new)
    assert sums is not None
    return finish(x.double() - origin, sums)


def forward(x, y, log_weights, kernel, skip_self, dtype) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) in float64; distances, exponentials and the sums of a tile in `dtype`."""
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    tall, wide, several = tile(x, y)
    log_mass = x.new_empty(x.shape[:-1], dtype=torch.float64)
    shift = x.new_empty(x.shape, dtype=torch.float64)
    for batch, r in loop(x.shape[0], x.shape[1], tall, several):
        part = None if log_weights is None else log_weights[batch]
        first = r.start if skip_self else None
        log_mass[batch, r], shift[batch, r] = rows(
            x[batch, r], y[batch], part, kernel, first, dtype, wide
        )
    return log_mass.view(*lead, -1), shift.view(*lead, -1, x.shape[-1])


def gradients(saved, g_mass, g_shift, kernel, skip_self, dtype, samples) -> Gradients:
    """(dx, dy, d log w) in float64 by `grad_tile`, its tiles in `dtype`."""
    x0, y0, log_weights, log_mass, shift = saved
    lead, x, y, log_weights = flatten(x0, y0, log_weights, skip_self)
    B, N, D = x.shape
    tall, wide, several = tile(x, y)
    origin = y.mean(-2, keepdim=True).double()
    rowwise = [
        t.reshape(B, N, *t.shape[len(lead) + 1 :]) for t in (log_mass, shift, g_mass, g_shift)
    ]
    dx = -rowwise[3]
    dy = x.new_zeros(y.shape, dtype=torch.float64)
    dw = x.new_zeros(y.shape[:-1], dtype=torch.float64)
    for batch, r in loop(B, N, tall, several):
        here = (x[batch, r].double() - origin[batch]).to(dtype)
        at = [t[batch, r].to(dtype) for t in rowwise]
        weights = None if log_weights is None else log_weights[batch].to(dtype)
        for c, part in columns(y[batch], weights, wide):
            there = (y[batch][..., c, :].double() - origin[batch]).to(dtype)
            own = diagonal(r.start if skip_self else None, c, here.shape[-2])
            dx_tile, dy_tile, dw_tile = grad_tile(
                here, there, part, at[0], at[1], at[2], at[3], kernel, own
            )
            dx[batch, r] += dx_tile
            dy[batch][..., c, :] += dy_tile
            dw[batch][..., c] += dw_tile
    dw = None if log_weights is None else unflatten(dw, lead, saved[2].shape)
    return dx.view(*lead, -1, D).sum_to_size(x0.shape), unflatten(dy, lead, y0.shape), dw
