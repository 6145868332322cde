r"""Gaussian sums by matrix products (GEMM), memory linear in N + M.

A Gaussian mean shift is softmax attention: with a = s (x - c), b = s (y - c), s² = log2(e)/h², the weight of a pair is
2^z, z = [1, a, -|a|²/2] · [log2 w - |b|²/2, b, 1]. Centring at c keeps digits that the expanded square would cancel;
`dispatch.exponent_error` bounds what remains of that error and decides between float32 and float64.

Two matrix products and one exp2 per tile. The losing sides (N = M = 1e4, one core): torch's fused attention, 1.1 to 2
times slower and without a public log-sum-exp; exp, twice the time of exp2; a running row maximum, two more passes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.kernels import Gaussian, Kernel, unscaled
from wgflow.reductions import blocked
from wgflow.reductions.blocked import Gradients, Index, flatten, tiles, unflatten

LN2 = math.log(2)
SAMPLE = 64  # samples whose nearest one sets the reference exponent of a row
CHUNK = 1 << 14  # points prepared at a time, to avoid a float64 copy of a whole cloud
TILE_BYTES = 3 << 18  # per tile and thread on a CPU: within a core's level-2 cache
TILE_BYTES_GPU = 1 << 26
# Fraction of denormal weights above which a pass that clamps them is cheaper than their slow exp2.
DENORMAL = 0.01
TILES_PER_SUM = (
    16  # tiles added in float32 before they are added in float64: a conversion is a pass of its own
)
MIN_COLUMNS = 256  # of a tile: narrower ones make slow products, wider ones leave the cache


def gaussian_of(kernel: Kernel) -> tuple[float, float] | None:
    """(h, log scale) of a multiple of a Gaussian, such as its gradient kernel; None for any other kernel."""
    kernel, log_scale = unscaled(kernel)
    return (kernel.h, log_scale) if isinstance(kernel, Gaussian) else None


class Factors:
    """The two factors of z for flat clouds x [B, N, D], y [B, M, D], log weights [B, M] or None."""

    def __init__(
        self, x: Tensor, y: Tensor, log_weights: Tensor | None, h: float, dtype: torch.dtype
    ):
        self.x, self.y, self.log_weights, self.dtype = x, y, log_weights, dtype
        self._parts: tuple[Index, list[tuple[int, Tensor, Tensor]]] | None = None
        self.s = math.sqrt(1 / LN2) / h
        self.centre = y.mean(-2, keepdim=True).double()
        B, M, D = y.shape
        self.right = y.new_empty(B, D + 3, M, dtype=dtype)  # rows β, b, 1, |b|²/2
        self.right[:, -2] = 1
        for j in range(0, M, CHUNK):
            b = self.scaled(y[:, j : j + CHUNK], self.centre)
            self.right[:, 1:-2, j : j + CHUNK] = b.mT
            half = b.double().square_().sum(-1).mul_(0.5)
            self.right[:, -1, j : j + CHUNK] = half
            self.right[:, 0, j : j + CHUNK] = -half
        # log2 weights are relative to the heaviest: eps times an exponent is an error.
        self.heaviest = y.new_zeros(B, 1, dtype=torch.float64)
        if log_weights is not None:
            w = log_weights.double() / LN2
            self.heaviest = w.amax(-1, keepdim=True)
            w -= self.heaviest
            beta = self.right[:, 0] + w.masked_fill(w == -math.inf, 0.0)
            # A zero weight: below all others of any row. -inf itself would give NaN in a product.
            edge = torch.cat([self.scaled(x[:, i : i + CHUNK], self.centre).square().sum(-1).amax(-1, keepdim=True)
                              for i in range(0, x.shape[-2], CHUNK)], -1).amax(-1, keepdim=True)  # fmt: skip
            reach = edge - 2 * beta.amin(-1, keepdim=True) + 4 * math.log2(torch.finfo(dtype).max)
            self.right[:, 0] = torch.where(w == -math.inf, beta - reach, beta)

    def scaled(self, points: Tensor, centre: Tensor) -> Tensor:
        return ((points.double() - centre) * self.s).to(self.dtype)

    def left(self, batch: Index, rows: slice) -> tuple[Tensor, Tensor]:
        """[1, a, ·] of some rows, its last column not yet filled, and -|a|²/2 in float64."""
        a = self.scaled(self.x[batch, rows], self.centre[batch])
        out = torch.cat([torch.ones_like(a[..., :1]), a, torch.empty_like(a[..., :1])], -1)
        return out, a.double().square_().sum(-1).mul_(-0.5)

    def parts(self, batch: Index) -> list[tuple[int, Tensor, Tensor]]:
        """(first column, rows [β; b; 1] and [b; 1; |b|²/2] of its columns) of each tile in a row of tiles; cached."""
        if self._parts is None or self._parts[0] != batch:
            wide = self.tile[1]
            split = self.right[batch].split(wide, -1)
            parts = [
                (j * wide, part[..., :-1, :], part[..., 1:, :]) for j, part in enumerate(split)
            ]
            self._parts = batch, parts
        return self._parts[1]

    def sample(self, batch: Index) -> Tensor:
        """A few columns of the right factor, evenly spaced."""
        M = self.right.shape[-1]
        return self.right[batch][..., :-1, :: -(-M // SAMPLE)]

    def rows(self) -> Iterator[tuple[Index, slice]]:
        return tiles(self.x.shape[0], self.x.shape[1], self.tile[0], self.tile[2])

    @functools.cached_property
    def tile(self) -> tuple[int, int, int]:
        """(rows, columns, batch elements) of a tile."""
        cuda = self.x.device.type != "cpu"
        size = TILE_BYTES_GPU if cuda else TILE_BYTES * torch.get_num_threads()
        pairs = max(1, size // self.right.element_size())
        (_, N, _), M = self.x.shape, self.right.shape[-1]
        wide = min(M, max(MIN_COLUMNS if not cuda else math.isqrt(pairs), pairs // max(1, N)))
        tall = min(N, max(1, pairs // wide))
        return tall, wide, max(1, pairs // max(1, N * M))


def forward(x, y, log_weights, kernel, skip_self, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(log_mass, shift, mean square distance) in float64; products and exponentials in `dtype`, sums in float64."""
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    h, log_scale = gaussian_of(kernel)  # type: ignore[misc]
    f = Factors(x, y, log_weights, h, dtype)
    log_mass = x.new_empty(x.shape[:-1], dtype=torch.float64)
    shift = x.new_empty(x.shape, dtype=torch.float64)
    spread = torch.empty_like(log_mass)
    exact_reference = False
    for batch, rows in f.rows():
        done = None if exact_reference else _rows(f, batch, rows, skip_self, exact=False)
        if done is None:
            # The nearest of the few samples is too far from the nearest of all; probably in later rows too.
            exact_reference = True
            done = _rows(f, batch, rows, skip_self, exact=True)
        if done is None:
            # Only the row's own sample or samples without weight are near: direct differences.
            part = None if log_weights is None else log_weights[batch]
            first = rows.start if skip_self else None
            done = blocked.sum_rows(x[batch, rows], y[batch], part, Gaussian(h), first)
        log_mass[batch, rows], shift[batch, rows], spread[batch, rows] = done
    shape = (*lead, -1)
    return (log_mass + log_scale).view(shape), shift.view(*shape, x.shape[-1]), spread.view(shape)


def _rows(
    f: Factors, batch: Index, rows: slice, skip_self: bool, exact: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The sums of some rows; None if the reference exponents were so far off that weights over- or underflowed."""
    A, minus_half = f.left(batch, rows)
    # Products this narrow run in one thread; as a batch of one block of rows per thread they run in all.
    threads = (
        torch.get_num_threads() if A.device.type == "cpu" and A.dim() == 2 and not skip_self else 1
    )
    spread = threads > 1 and A.shape[0] % threads == 0
    if spread:
        A = A.view(threads, -1, A.shape[-1])
    highest = math.log2(torch.finfo(f.dtype).max)
    # The reference only has to keep 2^(z - reference) within the range of floats, so the nearest of a few samples is
    # enough. It is set low: the largest weights are huge, and the smallest that matter are not denormal.
    tops, denormal = [], 0.0
    for part in [part for _, part, _ in f.parts(batch)] if exact else [f.sample(batch)]:
        z = A[..., :-1] @ part[..., :-1, :]
        tops.append(z.amax(-1))
        denormal = (z < (tops[-1] - 1.4 * highest).unsqueeze(-1)).float().mean()
    reference = torch.stack(tops).amax(0).double() - (0.7 if exact else 0.4) * highest
    A[..., -1] = -reference
    clamp = exact or bool(denormal > DENORMAL)
    acc = Total(A, A.shape[-1])
    work = A.new_empty(A[..., 0].numel() * f.tile[1])
    e = turned = work
    for start, part, values in f.parts(batch):
        if spread:
            part, values = part.expand(threads, -1, -1), values.expand(threads, -1, -1)
        if part.shape[-1] != e.shape[-1] or e is work:  # all tiles but the last share their views
            e = _view(A, part, work)
            turned = e.mT
        _powers(A, part, e, rows.start - start if skip_self else None, clamp)
        acc.add(values, turned)
    acc = acc.read()
    if spread:
        acc, reference = acc.transpose(0, 1).flatten(1), reference.flatten()
    total = acc[..., -2, :]
    # Check all sums: the mass can be finite where the mass times a coordinate is not.
    if not bool((total > 2.0 ** (-0.6 * highest)).all() & acc.isfinite().all()):
        return None
    log_mass = (total.log2() + reference + minus_half + f.heaviest[batch]) * LN2
    here = f.x[batch, rows].double() - f.centre[batch]
    shift = (acc[..., :-2, :] / (total * f.s).unsqueeze(-2)).mT - here
    second = acc[..., -1, :] / total * (2 / f.s**2)
    return log_mass, shift, blocked.mean_square_distance(here, shift, second)


class Total:
    """Σ [b; 1; ...] e over tiles: a few of them in the dtype of the tiles, by the product itself, then in float64."""

    def __init__(self, A: Tensor, values: int):
        self.whole = A.new_zeros(*A.shape[:-2], values, A.shape[-2], dtype=torch.float64)
        self.part, self.tiles = torch.zeros_like(self.whole, dtype=A.dtype), 0

        self.multiply = self.part.addmm_ if A.dim() == 2 else self.part.baddbmm_

    def add(self, a: Tensor, b: Tensor) -> None:
        self.multiply(a, b)
        self.tiles += 1
        if self.tiles % TILES_PER_SUM == 0:
            self.whole += self.part
            self.part.zero_()

    def read(self) -> Tensor:
        return self.whole + self.part


def _view(A: Tensor, right: Tensor, work: Tensor) -> Tensor:
    """The memory of `work` as a tile."""
    shape = (*A.shape[:-1], right.shape[-1])
    return work[: math.prod(shape)].view(shape)


def _powers(A: Tensor, right: Tensor, e: Tensor, own: int | None, clamp: bool) -> Tensor:
    """e = 2^z of one tile, 0 for the own sample of each row."""
    torch.matmul(A, right, out=e)
    if clamp:
        e.clamp_min_(math.log2(torch.finfo(e.dtype).tiny))
    torch.exp2(e, out=e)
    if own is not None and -e.shape[-2] < own < e.shape[-1]:
        e.diagonal(own, -2, -1).zero_()
    return e


def gradients(saved, g_mass, g_shift, kernel, skip_self, dtype, samples) -> Gradients:
    r"""(dx, dy, d log w) in float64: `dense.grad_tile` with W = 2^(z - log2 mass) and gradient kernel W / h².

    Without `samples`, dy and d log w are None, and two of five matrix products are saved.
    """
    x0, y0, log_weights, log_mass, shift = saved
    lead, x, y, log_weights = flatten(x0, y0, log_weights, skip_self)
    h, log_scale = gaussian_of(kernel)  # type: ignore[misc]
    f = Factors(x, y, log_weights, h, dtype)
    (B, N, D), M, wide = x.shape, y.shape[1], f.tile[1]
    log_mass, g_mass = (t.reshape(B, N) for t in (log_mass, g_mass))
    shift, g_shift = (t.reshape(B, N, D) for t in (shift, g_shift))
    dx = torch.empty_like(shift)
    dy = x.new_zeros(B if samples else 0, D, M, dtype=torch.float64)
    dw = x.new_zeros(B if samples else 0, M, dtype=torch.float64)
    for batch, rows in f.rows():
        A, minus_half = f.left(batch, rows)
        A[..., -1] = minus_half + f.heaviest[batch] - (log_mass[batch, rows] - log_scale) / LN2
        # Rows without mass: every weight is 0.
        A[..., -1].masked_fill_(log_mass[batch, rows] == -math.inf, -math.inf)
        G, here = g_shift[batch, rows], x[batch, rows].double() - f.centre[batch]
        constant = g_mass[batch, rows] - (G * (here + shift[batch, rows])).sum(-1)
        pull = torch.cat([G / f.s, constant.unsqueeze(-1)], -1).to(dtype)
        turned = G.to(dtype).mT.contiguous() if samples else G
        work, more = (A.new_empty(A[..., 0].numel() * wide) for _ in range(2))
        acc = Total(A, A.shape[-1] - 1)
        for j, part, values in f.parts(batch):
            values = values[..., :-1, :]
            W = _powers(A, part, _view(A, part, work), rows.start - j if skip_self else None, True)
            Wu = torch.matmul(pull, values, out=_view(A, part, more)).mul_(W)
            acc.add(values, Wu.mT)
            if samples:
                back = A[..., :-1].mT @ Wu  # Σ_i W u [1, a]
                dw[batch, j : j + wide] += back[..., 0, :]
                dy[batch, :, j : j + wide] += turned @ W
                dy[batch, :, j : j + wide] += back[..., 1:, :].double() / (f.s * h**2)
        acc = acc.read()
        dx[batch, rows] = (
            acc[..., :-1, :].mT / f.s - acc[..., -1, :].unsqueeze(-1) * here
        ) / h**2 - G
    dx = dx.view(*lead, -1, D).sum_to_size(x0.shape)
    if not samples:
        return dx, None, None
    dy -= (dw.unsqueeze(-1) * (y - f.centre)).mT / h**2
    dw = None if f.log_weights is None else unflatten(dw, lead, saved[2].shape)
    return dx, unflatten(dy.mT, lead, y0.shape), dw
