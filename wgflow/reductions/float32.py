r"""Sums in float32 over blocks of pairs, for any kernel; memory linear in N + M.

A block takes two matrix products: one for its squared distances |a|² + |b|² - 2ab, in float64 and rounded once, and one
for its sums. Where the first cancels, at pairs much nearer than the points are far from their centre, differences are
taken directly, so that every distance has the accuracy of float32.

Time per pair on one core, D = 2 to 64: .6 to 2.5 ns for these distances, 3 to 35 for `torch.cdist`. The losing side,
products in float32: .4 to 1.2 ns less, but distances below a fortieth of the clouds' width would not be accurate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.distances import sq_distances
from wgflow.kernels import Kernel, unscaled
from wgflow.kernels.kernel import LOG2E
from wgflow.reductions.blocked import diagonal, flatten, mean_square_distance, tile_shape, tiles
from wgflow.reductions.dense import log_weighted_kernel
from wgflow.reductions.dispatch import long_sum
from wgflow.reductions.gemm import Total

# Products err by 2^-52 (1 + sqrt(D) / 8) (|a|² + |b|²), half a unit in the last place of float32 at this fraction.
NEAR = 2.0**-28
# Devices on which products are fast: GPUs have few float64 units, and reading a value there waits for all work.
PRODUCTS = ("cpu",)
MANY = 1 / 16  # share of near pairs above which all distances of a block are computed directly
# Logarithms of weights down to which a sum needs no reference; and down to which exp is fast: a result below the range
# of normal numbers takes a hundred times as long.
LOWEST, UNDERFLOW = -60.0, -85.0


class Work:
    """Memory of a block in float64 and float32: blocks of new memory take a third of the time to map."""

    def __init__(self, like: Tensor, pairs: int):
        self.memory = [like.new_empty(pairs, dtype=d) for d in (torch.float64, torch.float32)]
        self.block = self.memory

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product of float64 factors, rounded to float32."""
        shape = (*a.shape[:-1], b.shape[-1])
        if self.block[0].shape != shape:
            self.block = [t[: math.prod(shape)].view(shape) for t in self.memory]
        wide, single = self.block
        return single.copy_(torch.matmul(a, b, out=wide))


class Rows:
    """Some points and their factor [-2a, |a|², 1], a = x - c, of squared distances."""

    def __init__(self, x: Tensor, centre: Tensor, work: Work):
        self.work = work
        self.points, self.centred = x.float(), x.double() - centre
        sq = self.centred.square().sum(-1, keepdim=True)
        self.factor = torch.cat([-2 * self.centred, sq, torch.ones_like(sq)], -1)
        self.extent = float(sq.amax())


class Columns:
    """Samples from number `start` on, their factor [b, 1, |b|²], b = y - c, and the same as the values to be summed."""

    def __init__(self, y: Tensor, centre: Tensor, log_weights: Tensor | None, start: int):
        there = y.double() - centre
        sq = there.square().sum(-1, keepdim=True)
        self.points, self.log_weights = y.float(), log_weights
        self.weights = None if log_weights is None else log_weights.exp().unsqueeze(-2)
        self.factor = torch.cat([there, torch.ones_like(sq), sq], -1).mT
        self.values = self.factor.float().contiguous()
        self.extent = float(sq.amax())
        self.span = slice(start, start + y.shape[-2])


def forward(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor, Tensor]:
    """(log_mass, shift, mean square distance) in float64."""
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    kernel, log_scale = unscaled(kernel)
    tall, wide, several = tile_shape(x, y, torch.float32)
    centre = y.mean(-2, keepdim=True).double()
    heaviest, lightest = torch.zeros_like(centre[..., 0]), 0.0
    if log_weights is not None:
        heaviest = log_weights.double().amax(-1, keepdim=True)
        log_weights = (log_weights - heaviest).float()
        lightest = float(log_weights.masked_fill(log_weights == -math.inf, 0.0).amin())
    work = Work(x, min(several, x.shape[0]) * tall * wide)
    log_mass = x.new_empty(x.shape[:-1], dtype=torch.float64)
    shift = x.new_empty(x.shape, dtype=torch.float64)
    spread, prepared, columns = torch.empty_like(log_mass), None, []
    for batch, r in tiles(x.shape[0], x.shape[1], tall, several):
        if batch != prepared:
            prepared, samples, c = batch, y[batch], centre[batch]
            w = None if log_weights is None else log_weights[batch]
            columns = [
                Columns(samples[..., j : j + wide, :], c, None if w is None else w[..., j : j + wide], j)
                for j in range(0, y.shape[1], wide)
            ]  # fmt: skip
        rows = Rows(x[batch, r], centre[batch], work)
        logs, sums = _sums(rows, columns, kernel, r.start if skip_self else None, lightest)
        mass = sums[..., -2, :]
        means = sums / mass.masked_fill(mass == 0, 1.0).unsqueeze(-2)
        log_mass[batch, r] = mass.log() + logs + heaviest[batch] + log_scale
        shift[batch, r] = (means[..., :-2, :].mT - rows.centred).masked_fill_(
            (mass == 0).unsqueeze(-1), 0.0
        )
        spread[batch, r] = mean_square_distance(rows.centred, shift[batch, r], means[..., -1, :])
    shape = (*lead, -1)
    return log_mass.view(shape), shift.view(*shape, x.shape[-1]), spread.view(shape)


def _sums(
    rows: Rows, columns: list[Columns], kernel: Kernel, first: int | None, lightest: float
) -> tuple[Tensor | float, Tensor]:
    """(reference [..., R], Σ_j e [b, 1, |b|²] [..., D + 2, R] in float64), e = w k exp(-reference)."""

    def own(part: Columns) -> int | Tensor | None:
        return diagonal(first, part.span, rows.points.shape[-2])

    def logs(part: Columns) -> Tensor:
        return log_weighted_kernel(distances(rows, part), part.log_weights, kernel, own(part))

    farthest = torch.tensor(2 * (rows.extent + max(part.extent for part in columns)))
    if float(kernel.log(farthest)) + lightest > LOWEST:
        total = Total(rows.points, rows.factor.shape[-1])
        for part in columns:
            e = kernel._values(distances(rows, part))
            if part.weights is not None:
                e.mul_(part.weights)
            left_out = own(part)
            assert not isinstance(left_out, Tensor)
            if left_out is not None:
                e.diagonal(left_out, -2, -1).zero_()
            total.add(part.values, e.mT)
        sums = total.read()
        if bool(sums.isfinite().all()):  # not if a singular kernel overflows
            return 0.0, sums
    # Relative to the heaviest sample of each row, found in a pass of its own.
    top = torch.stack([logs(part).amax(-1) for part in columns]).amax(0)
    nothing = top == -math.inf
    top.masked_fill_(nothing, 0.0)
    total = Total(rows.points, rows.factor.shape[-1])
    for part in columns:
        e = logs(part).sub_(top.unsqueeze(-1)).clamp_min_(UNDERFLOW).mul_(LOG2E).exp2_()
        total.add(part.values, e.mT)
    return top.double(), total.read().masked_fill_(nothing.unsqueeze(-2), 0.0)


def distances(rows: Rows, part: Columns) -> Tensor:
    """|x_i - y_j|² in float32, to a few units in the last place; 0 for coincident points alone."""
    if rows.points.device.type not in PRODUCTS:
        return sq_distances(rows.points, part.points)
    sq = rows.work.product(rows.factor, part.factor)
    near = NEAR * long_sum(rows.points.shape[-1]) * (rows.extent + part.extent)
    if float(sq.amin()) >= near:
        return sq
    *batch, i, j = (sq < near).nonzero(as_tuple=True)
    if len(i) > MANY * sq.numel():
        return sq_distances(rows.points, part.points)
    steps = rows.points[(*batch, i)].double() - part.points[(*batch, j)]
    exact = steps.square().sum(-1)
    sq[(*batch, i, j)] = exact.clamp_min(torch.finfo(sq.dtype).tiny).mul_(exact > 0).float()
    return sq
