r"""Sums over blocks of pairs by direct differences: any kernel, memory linear in N + M."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.kernels import Kernel
from wgflow.reductions.dense import finish, grad_tile, merge, sum_tile

# Pairs per tile and thread: 1 MB in float64, the size of a core's level-2 cache.
TILE_PAIRS = 1 << 17
TILE_PAIRS_GPU = 1 << 23
Gradients = tuple[Tensor, Tensor | None, Tensor | None]  # of x, y, log weights
# One batch element (its dimension is dropped: plain matrix products are faster), or several.
Index = int | slice


def flatten(
    x: Tensor, y: Tensor, log_weights: Tensor | None, skip_self: bool
) -> tuple[torch.Size, Tensor, Tensor, Tensor | None]:
    """(leading shape, x [B, N, D], y [B, M, D], log weights [B, M]). B = 1 if all batch elements share y."""
    lead = torch.broadcast_shapes(
        x.shape[:-2], y.shape[:-2], () if log_weights is None else log_weights.shape[:-1]
    )
    D, M = y.shape[-1], y.shape[-2]
    shared = y.numel() == M * D and (log_weights is None or log_weights.numel() == M)
    if shared and not skip_self:
        w = None if log_weights is None else log_weights.reshape(1, M)
        x = x.expand(*lead, -1, -1)
        return lead, x.reshape(1, -1, D), y.reshape(1, M, D), w
    B = math.prod(lead)
    w = None if log_weights is None else log_weights.expand(*lead, -1).reshape(B, M)
    x, y = (t.expand(*lead, -1, -1).reshape(B, -1, D) for t in (x, y))
    return lead, x, y, w


def tiles(batch: int, rows: int, tall: int, several: int) -> Iterator[tuple[Index, slice]]:
    """Blocks of `tall` rows of each batch element, or all rows of `several` elements at a time."""
    if several > 1 and batch > 1 and tall >= rows:
        for b in range(0, batch, several):
            yield slice(b, b + several), slice(0, rows)
        return
    for b in range(batch):
        for i in range(0, rows, tall):
            yield b, slice(i, min(rows, i + tall))


def unflatten(t: Tensor, lead: torch.Size, shape: torch.Size) -> Tensor:
    """The gradient of a flattened tensor in its original shape, summed over expanded dimensions."""
    if t.numel() == math.prod(shape):
        return t.reshape(shape)
    return t.view(*lead, *t.shape[1:]).sum_to_size(shape)


def tile_shape(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """(rows, columns, batch elements) of a tile of flat clouds, about TILE_PAIRS pairs in all."""
    pairs = TILE_PAIRS * torch.get_num_threads() if x.device.type == "cpu" else TILE_PAIRS_GPU
    n, m = x.shape[-2], y.shape[-2]
    wide = min(m, max(1, math.isqrt(pairs), pairs // max(n, 1)))
    tall = min(n, max(1, pairs // wide))
    return tall, wide, max(1, pairs // max(1, n * m))


def columns(
    y: Tensor, log_weights: Tensor | None, wide: int
) -> Iterator[tuple[slice, Tensor | None]]:
    """Blocks of columns with their log weights."""
    for j in range(0, y.shape[-2], wide):
        c = slice(j, j + wide)
        yield c, None if log_weights is None else log_weights[..., c]


def diagonal(first: int | None, c: slice, rows: int) -> int | None:
    """Offset of the entries i = j in a tile whose rows start at `first`; None if it has none of them."""
    return None if first is None or not c.start - rows < first < c.stop else first - c.start


def sum_rows(x, y, log_weights, kernel: Kernel, first: int | None, dtype, wide: int | None = None):
    """(log_mass, shift) of a block of rows in float64, its tiles in `dtype`.

    `first` is the number of the first row if each leaves its own sample out, else None.
    """
    origin = y.mean(-2, keepdim=True).double()
    here = (x.double() - origin).to(dtype)
    sums = None
    for c, part in columns(y, log_weights, wide or tile_shape(x, y)[1]):
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
    tall, wide, several = tile_shape(x, y)
    log_mass = x.new_empty(x.shape[:-1], dtype=torch.float64)
    shift = x.new_empty(x.shape, dtype=torch.float64)
    for batch, r in tiles(x.shape[0], x.shape[1], tall, several):
        part = None if log_weights is None else log_weights[batch]
        first = r.start if skip_self else None
        log_mass[batch, r], shift[batch, r] = sum_rows(
            x[batch, r], y[batch], part, kernel, first, dtype, wide
        )
    return log_mass.view(*lead, -1), shift.view(*lead, -1, x.shape[-1])


def gradients(saved, g_mass, g_shift, kernel, skip_self, dtype, samples) -> Gradients:
    """(dx, dy, d log w) in float64 by `grad_tile`, its tiles in `dtype`."""
    x0, y0, log_weights, log_mass, shift = saved
    lead, x, y, log_weights = flatten(x0, y0, log_weights, skip_self)
    B, N, D = x.shape
    tall, wide, several = tile_shape(x, y)
    origin = y.mean(-2, keepdim=True).double()
    rowwise = [
        t.reshape(B, N, *t.shape[len(lead) + 1 :]) for t in (log_mass, shift, g_mass, g_shift)
    ]
    dx = -rowwise[3]
    dy = x.new_zeros(y.shape, dtype=torch.float64)
    dw = x.new_zeros(y.shape[:-1], dtype=torch.float64)
    for batch, r in tiles(B, N, tall, several):
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
