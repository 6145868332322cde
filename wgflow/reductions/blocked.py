r"""Sums in float64 over blocks of pairs by direct differences: any kernel, memory linear in N + M."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.arguments import values_available
from wgflow.kernels import Kernel
from wgflow.reductions.dense import (
    exact_centre,
    factor_weights,
    finish,
    grad_tile,
    merge,
    sum_tile,
    within_range,
)

# Per tile, on a CPU for each thread: the size of a core's level-2 cache.
TILE_BYTES = 1 << 20
TILE_BYTES_GPU = 1 << 26
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


def tile_shape(x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> tuple[int, int, int]:
    """(rows, columns, batch elements) of a tile of flat clouds, about TILE_BYTES in all if its pairs have `dtype`."""
    size = TILE_BYTES * torch.get_num_threads() if x.device.type == "cpu" else TILE_BYTES_GPU
    pairs = max(1, size // dtype.itemsize)
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


def diagonal(first: int | Tensor | None, c: slice, rows: int) -> int | Tensor | None:
    """Offset of the entries i = j in a tile whose rows start at `first`, None if it has none; or of numbered rows."""
    if isinstance(first, Tensor):
        return first - c.start
    return None if first is None or not c.start - rows < first < c.stop else first - c.start


def sum_rows(
    x,
    y,
    log_weights,
    kernel: Kernel,
    first: int | Tensor | None,
    wide: int | None = None,
    origin: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log_mass, shift, mean square distance) of a block of rows.

    `first` is the number of the first row if each leaves its own sample out (or the numbers of all), else None.
    """
    if origin is None:
        origin = exact_centre(y, log_weights).double()
    here, sums = x.double() - origin, None
    for c, part in columns(y, log_weights, wide or tile_shape(x, y)[1]):
        there = y[..., c, :].double() - origin
        part = None if part is None else part.double()
        own = diagonal(first, c, x.shape[-2])
        values = torch.cat([there, there.square().sum(-1, keepdim=True)], -1)
        new = sum_tile(here, there, part, kernel, own, values)
        sums = new if sums is None else merge(sums, new)
    assert sums is not None
    top, total, moment = sums
    log_mass, shift = finish(here, (top, total, moment[..., :-1]))
    return (
        log_mass,
        shift,
        mean_square_distance(here, shift, (moment[..., -1:] / total).squeeze(-1)),
    )


def mean_square_distance(x: Tensor, shift: Tensor, second: Tensor) -> Tensor:
    """Σ_j W_ij |y_j - x_i|² from the shift and second = Σ_j W_ij |y_j|²."""
    return second - (x * (x + 2 * shift)).sum(-1)


def forward(x, y, log_weights, kernel, skip_self, numbers: Tensor | None = None):
    """(log_mass, shift, mean square distance).

    `numbers` are those of the rows among the samples, for `skip_self` where x is a part of one cloud.
    """
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    tall, wide, several = tile_shape(x, y)
    log_mass = x.new_empty(x.shape[:-1], dtype=torch.float64)
    shift = x.new_empty(x.shape, dtype=torch.float64)
    spread = torch.empty_like(log_mass)
    origin = exact_centre(y, log_weights).double()
    for batch, r in tiles(x.shape[0], x.shape[1], tall, several):
        part = None if log_weights is None else log_weights[batch]
        first = first_row(r, skip_self, numbers)
        log_mass[batch, r], shift[batch, r], spread[batch, r] = sum_rows(
            x[batch, r], y[batch], part, kernel, first, wide, origin[batch]
        )
    rows = (*lead, -1)
    return log_mass.view(rows), shift.view(*rows, x.shape[-1]), spread.view(rows)


def first_row(r: slice, skip_self: bool, numbers: Tensor | None) -> int | Tensor | None:
    if not skip_self:
        return None
    return r.start if numbers is None else numbers[r]


def gradients(
    saved,
    g_mass,
    g_shift,
    kernel,
    skip_self,
    dtype,
    samples,
    unit: Tensor | None = None,
    numbers: Tensor | None = None,
) -> Gradients:
    """(dx, dy, d log w) in float64 by `grad_tile`, its tiles in `dtype`.

    With `unit` of `factor_weights`, of the shape of the log weights, the third is its gradient. `numbers` as `forward`.
    """
    x0, y0, log_weights, log_mass, shift = saved
    unit = None if unit is None else flatten(x0, y0, unit, skip_self)[3]
    lead, x, y, log_weights = flatten(x0, y0, log_weights, skip_self)
    B, N, D = x.shape
    tall, wide, several = tile_shape(x, y)
    origin = exact_centre(y, log_weights).double()
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
            own = diagonal(first_row(r, skip_self, numbers), c, here.shape[-2])
            present = None if unit is None else unit[batch][..., c]
            dx_tile, dy_tile, dw_tile = grad_tile(
                here, there, part, at[0], at[1], at[2], at[3], kernel, own, present
            )
            dx[batch, r] += dx_tile
            dy[batch][..., c, :] += dy_tile
            dw[batch][..., c] += dw_tile
    dw = None if log_weights is None else unflatten(dw, lead, saved[2].shape)
    return dx.view(*lead, -1, D).sum_to_size(x0.shape), unflatten(dy, lead, y0.shape), dw


def some_are_zero(weights: Tensor) -> bool:
    """Return True if a weight is 0, or may be since values cannot be read."""
    return not values_available(weights) or bool((weights == 0).any())


def gradients_at_zero(
    x, y, log_weights, weights, log_mass, shift, g_mass, g_shift, kernel, skip_self
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(dx, dy, dl, dw) with weights of 0, in float64 by direct differences; dw in the dtype of the weights."""
    L, unit = factor_weights(log_weights, weights)
    L, unit = (t.detach() for t in torch.broadcast_tensors(L, unit))
    dx, dy, dunit = gradients(
        (x, y, L, log_mass, shift), g_mass, g_shift, kernel, skip_self, torch.float64, True, unit
    )
    assert dy is not None and dunit is not None
    w = weights.double()
    dw = within_range(dunit.sum_to_size(weights.shape) / w.masked_fill(w == 0, 1.0), weights)
    dl = None if log_weights is None else (dunit * unit).sum_to_size(log_weights.shape)
    return dx, dy, dl, dw
