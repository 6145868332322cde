r"""Sums over one matrix of pairs: their algebra, how partial sums merge, and their gradients.

Merging (max, sum, weighted sum) is associative, so blocks, processes and machines share one algorithm. The gradient of
a block needs no more than log_mass and shift of its rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.kernels import Kernel

Sums = tuple[Tensor, Tensor, Tensor]  # row maximum [..., N, 1], Σ e [..., N, 1], Σ e y [..., N, D]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|², [..., N, M]."""
    # Direct differences. |x|² - 2xy + |y|² is one matrix product and faster, but cancels: eps |x|²/h² in the logit.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def log_weighted_kernel(
    sq: Tensor, log_weights: Tensor | None, kernel: Kernel, diagonal: int | None
) -> Tensor:
    """log w_j k_ij of one tile; `diagonal` is the offset of the entries to leave out (i = j), or None."""
    logits = kernel.log(sq)
    if log_weights is not None:
        logits = logits + log_weights.unsqueeze(-2)
    if diagonal is not None:
        logits.diagonal(diagonal, -2, -1).fill_(-math.inf)  # kernel.log returns a fresh tensor
    return logits


def sum_tile(x, y, log_weights, kernel, diagonal) -> Sums:
    """(row maximum, Σ e, Σ e y) of one tile, e = exp(logit - maximum)."""
    logits = log_weighted_kernel(squared_distances(x, y), log_weights, kernel, diagonal)
    # Subtract the row maximum before exp: at |x - y| = 100 h every weight underflows, and 0/0 is a NaN drift.
    # Rows without any weight have maximum -inf; the lowest finite number in its place leaves their e at 0.
    top = logits.amax(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    e = (logits - top).exp_()
    return top, e.sum(-1, keepdim=True), e @ y


def merge(a: Sums, b: Sums) -> Sums:
    """The sums over the union of two disjoint sets of samples. Associative and commutative."""
    top = torch.maximum(a[0], b[0])
    scale_a, scale_b = (a[0] - top).exp_(), (b[0] - top).exp_()
    return top, a[1] * scale_a + b[1] * scale_b, a[2] * scale_a + b[2] * scale_b


def finish(x: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) of the sums over all samples."""
    top, total, moment = sums
    shift = (moment / total).sub_(x).masked_fill_(total == 0, 0.0)
    return (total.log() + top).squeeze(-1), shift


def mask_empty_rows(g_shift: Tensor, log_mass: Tensor) -> Tensor:
    """The upstream gradient of a shift with 0 in rows without mass, whose shift is constantly 0."""
    return g_shift.masked_fill((log_mass == -math.inf).unsqueeze(-1), 0.0)


def grad_tile(x, y, log_weights, log_mass, shift, g_mass, g_shift, kernel, diagonal):
    r"""Gradients of one tile from W = w k / mass and S = w s / mass, s the gradient kernel, both computed again.

    With u_ij = g_mass_i + g_shift_i · (y_j - x_i - shift_i): d log w_j = Σ_i W u, dx_i = Σ_j S u (y_j - x_i),
    dy_j = Σ_i W g_shift_i - Σ_i S u (y_j - x_i). The caller adds the -g_shift of shift = barycentre - x to dx.
    """
    sq = squared_distances(x, y)
    norm = log_mass.clamp_min(torch.finfo(log_mass.dtype).min).unsqueeze(-1)
    W = (log_weighted_kernel(sq, log_weights, kernel, diagonal) - norm).exp()
    S = (log_weighted_kernel(sq, log_weights, kernel.gradient_kernel, diagonal) - norm).exp()
    u = g_shift @ y.mT + (g_mass - (g_shift * (x + shift)).sum(-1)).unsqueeze(-1)
    Su = S * u
    dx = Su @ y - Su.sum(-1, keepdim=True) * x
    dy = W.mT @ g_shift + Su.mT @ x - Su.sum(-2).unsqueeze(-1) * y
    return dx, dy, (W * u).sum(-2)


def dense_sum(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) of float64 clouds."""
    return finish(x, sum_tile(x, y, log_weights, kernel, 0 if skip_self else None))


def dense_gradients(saved, g_mass, g_shift, kernel, skip_self):
    """(dx, dy, d log w) in float64, by differentiable operations."""
    x, y, log_weights, log_mass, shift = saved
    w = None if log_weights is None else log_weights.double()
    own, g_shift = 0 if skip_self else None, mask_empty_rows(g_shift, log_mass)
    # Centred, as in every forward: products of coordinates lose the digits of a far cloud.
    origin = y.detach().double().mean(-2, keepdim=True)
    here, there = x.double() - origin, y.double() - origin
    dx, dy, dw = grad_tile(here, there, w, log_mass, shift, g_mass, g_shift, kernel, own)
    dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
    return (dx - g_shift).sum_to_size(x.shape), dy.sum_to_size(y.shape), dw
