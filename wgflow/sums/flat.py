"""Clouds with any leading dimensions as [B, n, D], and the order in which their blocks are visited."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor | None, Tensor | None]  # of x, y, log weights
Index = (
    int | slice
)  # one batch element (its dimension goes: plain matrix products are faster), or several


def flatten(
    x: Tensor, y: Tensor, log_weights: Tensor | None, skip_self: bool
) -> tuple[torch.Size, Tensor, Tensor, Tensor | None]:
    """(leading shape, x [B, N, D], y [B, M, D], log weights [B, M]). One cloud y for every x stays one: B = 1."""
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


def loop(batch: int, rows: int, tall: int, several: int) -> Iterator[tuple[Index, slice]]:
    """Blocks of rows of every batch element; of `several` elements at a time where a block holds all rows."""
    if several > 1 and batch > 1 and tall >= rows:
        for b in range(0, batch, several):
            yield slice(b, b + several), slice(0, rows)
        return
    for b in range(batch):
        for i in range(0, rows, tall):
            yield b, slice(i, min(rows, i + tall))


def unflatten(t: Tensor, lead: torch.Size, shape: torch.Size) -> Tensor:
    """The gradient of a flattened tensor in the shape it had before: summed over the dimensions it was spread along."""
    if t.numel() == math.prod(shape):
        return t.reshape(shape)
    return t.view(*lead, *t.shape[1:]).sum_to_size(shape)
