r"""Rows of a sum that average distances too short for the precision it was computed in, and their sums in float64.

A shift is the difference of a barycentre and a point, both as long as the clouds are wide: in a cluster of width 1e-6
float32 coordinates of size 1 have lost it. A row is refined unless its shift, or the root mean square of the distances
that it averages, exceeds the rounding error by far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.reductions import blocked
from wgflow.reductions.blocked import flatten, unflatten
from wgflow.reductions.dispatch import EPS64, ROUNDING, SHORTEST, Choice

FEW = 1 / 8  # share of rows up to which they are refined one by one


def imprecise_rows(
    x: Tensor, log_mass: Tensor, shift: Tensor, spread: Tensor, choice: Choice
) -> Tensor | None:
    """Boolean [..., N]; None if no row is imprecise. `spread` is the mean square distance of each row."""
    if choice.rounding is None:
        return None
    shortest = choice.rounding / SHORTEST[x.dtype if x.dtype == torch.float64 else torch.float32]
    # The mean square distance is a difference of squares, whose rounding errors are those of the shift times its reach.
    noise = choice.rounding**2 / (ROUNDING * torch.finfo(choice.dtype).eps)
    short = spread < shortest**2 + noise
    if not bool(short.any()):
        return None
    short &= (shift.square().sum(-1) < shortest**2) & (log_mass > -math.inf)
    if choice.dtype == torch.float64:
        # No digits are to be had beyond those of the point itself.
        short &= x.double().square().sum(-1) < (choice.rounding / (4 * ROUNDING * EPS64)) ** 2
    return short if bool(short.any()) else None


class Part:
    """The rows of flat clouds that are refined: some rows of one cloud, or all rows of some batch elements."""

    def __init__(
        self, x: Tensor, y: Tensor, log_weights: Tensor | None, rows: Tensor, skip_self: bool
    ):
        self.lead, flat_x, flat_y, w = flatten(x, y, log_weights, skip_self)
        self.shape, self.samples = flat_x.shape, flat_y.shape
        B, N, _ = flat_x.shape
        rows = rows.reshape(B, N)
        self.numbers, self.index = None, rows.any(-1).nonzero().squeeze(-1)
        self.x, self.y = flat_x[self.index], flat_y[self.index]
        self.log_weights = None if w is None else w[self.index]
        if B == 1:
            self.numbers = rows[0].nonzero().squeeze(-1)
            self.x = self.x[:, self.numbers]

    def read(self, t: Tensor) -> Tensor:
        """The rows of this part of a tensor [..., N] or [..., N, D]."""
        t = t.reshape(*self.shape[:2], *t.shape[len(self.lead) + 1 :])[self.index]
        return t if self.numbers is None else t[:, self.numbers]

    def remove(self, g_mass: Tensor, g_shift: Tensor) -> tuple[Tensor, Tensor]:
        """Upstream gradients with 0 in all rows of this part."""
        gone = torch.zeros_like(g_mass, dtype=torch.bool, memory_format=torch.contiguous_format)
        self.write(gone, True)
        return g_mass.masked_fill(gone, 0.0), g_shift.masked_fill(gone.unsqueeze(-1), 0.0)

    def write(self, t: Tensor, rows: Tensor | float) -> None:
        """Overwrite these rows of a contiguous tensor [..., N] or [..., N, D]."""
        flat = t.view(*self.shape[:2], *t.shape[len(self.lead) + 1 :])
        if self.numbers is None:
            flat[self.index] = rows
        else:
            flat[0, self.numbers] = rows[0] if isinstance(rows, Tensor) else rows


def refine(
    x, y, log_weights, kernel, skip_self, rows: Tensor, log_mass: Tensor, shift: Tensor
) -> None:
    """Overwrite `rows` of log_mass and shift by their sums in float64."""
    part = Part(x, y, log_weights, rows, skip_self)
    sums = blocked.forward(part.x, part.y, part.log_weights, kernel, skip_self, part.numbers)
    part.write(log_mass, sums[0])
    part.write(shift, sums[1])


def refined_gradients(part: Part, saved, g_mass, g_shift, kernel, skip_self, samples: bool):
    """The share of a part in (dx, dy, d log w), in float64."""
    x, y, log_weights, log_mass, shift = saved
    at = (part.x, part.y, part.log_weights, part.read(log_mass), part.read(shift))
    grads = blocked.gradients(
        at, part.read(g_mass), part.read(g_shift), kernel, skip_self, torch.float64, samples,
        numbers=part.numbers,
    )  # fmt: skip
    dx = x.new_zeros(part.shape, dtype=torch.float64).view(*part.lead, -1, x.shape[-1])
    part.write(dx, grads[0])
    dx = dx.sum_to_size(x.shape)
    if not samples:
        return dx, None, None
    B, M, D = part.samples
    dy, dw = (x.new_zeros(B, M, *s, dtype=torch.float64) for s in ((D,), ()))
    dy[part.index] = grads[1]
    dy = unflatten(dy, part.lead, y.shape)
    if log_weights is None:
        return dx, dy, None
    dw[part.index] = grads[2]
    return dx, dy, unflatten(dw, part.lead, log_weights.shape)
