r"""Sums over one matrix of pairs: their algebra, how partial sums merge, and their gradients.

Merging (max, sum, weighted sum) is associative, so blocks, processes and machines share one algorithm. The gradient of
a block needs no more than log_mass and shift of its rows.

A sample counts w_j e^(l_j): `weights` w >= 0 and `log_weights` l, each optional. The sums see log w + l only; gradients
with respect to w are taken of w itself, since those of log w are 0/0 at w = 0, where the true ones are finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.distances import sq_distances
from wgflow.kernels import Kernel

Sums = tuple[Tensor, Tensor, Tensor]  # row maximum [..., N, 1], Σ e [..., N, 1], Σ e y [..., N, D]
# Largest exponent of an unweighted kernel relative to its row's mass: a zero weight in a far row may have a derivative
# beyond the range of floats, and an infinite one would make NaN of the 0 that a softmax multiplies it with.
MAX_EXPONENT = 600.0


def exact_centre(y: Tensor, log_weights: Tensor | None) -> Tensor:
    """An origin from which y - c is exact, [..., 1, D]: near to samples that lie far from 0, else 0.

    Per coordinate, c is the middle of the samples with weight if their width is at most |c| / 2, so that y - c is not
    rounded (Sterbenz 1974). In any other case coordinates about 0 are as accurate as the numbers given. The losing
    side, their mean: one sample at 1e18, even of weight 0, moved it so far that the digits of all others were lost.
    """
    if log_weights is None:
        low, high = y.amin(-2, keepdim=True), y.amax(-2, keepdim=True)
    else:
        absent = (log_weights == -math.inf).unsqueeze(-1)
        low = torch.where(absent, math.inf, y).amin(-2, keepdim=True)
        high = torch.where(absent, -math.inf, y).amax(-2, keepdim=True)
    middle = 0.5 * low + 0.5 * high
    return torch.where(high - low <= 0.5 * middle.abs(), middle, 0.0)


def combine_weights(log_weights: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """log w + l, -inf where w = 0; in float64, without gradient for w, if there are weights w."""
    if weights is None:
        return log_weights
    logs = weights.detach().double().log()
    return logs if log_weights is None else logs + log_weights


def factor_weights(log_weights: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(L, unit) with w e^l = unit e^L, where unit = w / w.detach(), or w where w = 0, and L is finite at w = 0.

    Sums are polynomials in `unit`, so its derivatives of every order exist at 0, and those of w follow.
    """
    w = weights.double()
    size = w.detach().masked_fill(w.detach() == 0, 1.0)
    L = size.log() if log_weights is None else size.log() + log_weights
    return L, w / size


def within_range(gradient: Tensor, like: Tensor) -> Tensor:
    """`gradient` in the dtype of `like`, the largest number where it would be infinite."""
    largest = torch.finfo(like.dtype).max
    return gradient.clamp(-largest, largest).to(like.dtype)


def log_weighted_kernel(
    sq: Tensor, log_weights: Tensor | None, kernel: Kernel, diagonal: int | Tensor | None
) -> Tensor:
    """log w_j k_ij of one tile; `diagonal`: the offset of the entries to leave out (i = j), or their column per row."""
    logits = kernel.log(sq)
    if log_weights is not None:
        logits = logits + log_weights.unsqueeze(-2)
    if isinstance(diagonal, Tensor):
        rows = ((diagonal >= 0) & (diagonal < logits.shape[-1])).nonzero().squeeze(-1)
        logits[..., rows, diagonal[rows]] = -math.inf
    elif diagonal is not None:
        logits.diagonal(diagonal, -2, -1).fill_(-math.inf)  # kernel.log returns a fresh tensor
    return logits


def sum_tile(x, y, log_weights, kernel, diagonal, values: Tensor | None = None) -> Sums:
    """(row maximum, Σ e, Σ e y) of one tile, e = exp(logit - maximum); the last of `values` in place of y if given."""
    logits = log_weighted_kernel(sq_distances(x, y), log_weights, kernel, diagonal)
    # Subtract the row maximum before exp: at |x - y| = 100 h every weight underflows, and 0/0 is a NaN drift.
    # Rows without any weight have maximum -inf; the lowest finite number in its place leaves their e at 0.
    top = logits.amax(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    e = (logits - top).exp_()
    return top, e.sum(-1, keepdim=True), weighted_sums(e, y if values is None else values)


def weighted_sums(W: Tensor, values: Tensor) -> Tensor:
    """Σ_j W_ij z_j of all rows: W [..., N, M], z [..., M, C] -> [..., N, C]."""
    # With one sample, as in cloning, batched matrix products take ten times as long as the outer products they are.
    return W * values if values.shape[-2] == 1 else W @ values


def centred(x: Tensor, y: Tensor, log_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both clouds in float64, about an origin near to them."""
    if x.dtype != torch.float64:
        return x.double(), y.double()  # float32 input has digits to spare
    origin = exact_centre(y.detach(), None if log_weights is None else log_weights.detach())
    return x - origin, y - origin


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


def grad_tile(
    x,
    y,
    log_weights,
    log_mass,
    shift,
    g_mass,
    g_shift,
    kernel,
    diagonal,
    unit: Tensor | None = None,
):
    r"""Gradients of one tile from W = w k / mass and S = w s / mass, s the gradient kernel, both computed again.

    With u_ij = g_mass_i + g_shift_i · (y_j - x_i - shift_i): d log w_j = Σ_i W u, dx_i = Σ_j S u (y_j - x_i),
    dy_j = Σ_i W g_shift_i - Σ_i S u (y_j - x_i). The caller adds the -g_shift of shift = barycentre - x to dx.
    With `unit` of `factor_weights`, the third is the gradient of `unit` instead.
    """
    sq = sq_distances(x, y)
    norm = log_mass.clamp_min(torch.finfo(log_mass.dtype).min).unsqueeze(-1)
    W = log_weighted_kernel(sq, log_weights, kernel, diagonal) - norm
    S = log_weighted_kernel(sq, log_weights, kernel.gradient_kernel, diagonal) - norm
    if unit is not None:
        W, S = W.clamp_max(MAX_EXPONENT), S.clamp_max(MAX_EXPONENT)
    W, S = W.exp(), S.exp()
    u = g_shift @ y.mT + (g_mass - (g_shift * (x + shift)).sum(-1)).unsqueeze(-1)
    whole = W * u
    if unit is not None:
        W, S = W * unit.unsqueeze(-2), S * unit.unsqueeze(-2)
    Su = S * u
    dx = Su @ y - Su.sum(-1, keepdim=True) * x
    dy = W.mT @ g_shift + Su.mT @ x - Su.sum(-2).unsqueeze(-1) * y
    return dx, dy, whole.sum(-2)


def dense_sum(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) of float64 clouds."""
    log_weights = None if log_weights is None else log_weights.double()
    return finish(x, sum_tile(x, y, log_weights, kernel, 0 if skip_self else None))


def dense_gradients(saved, g_mass, g_shift, kernel, skip_self, of_weights: bool = True):
    """(dx, dy, dl, dw) in float64, dw in the dtype of w, by differentiable operations.

    Without `of_weights`, dw is None, and a pass over the pairs is saved.
    """
    x, y, log_weights, weights, log_mass, shift = saved
    L, unit = combine_weights(log_weights, weights), None
    if weights is not None and of_weights:
        L, unit = factor_weights(log_weights, weights)
    L = None if L is None else L.double()
    own, g_shift = 0 if skip_self else None, mask_empty_rows(g_shift, log_mass)
    # Centred, as in every forward: products of coordinates lose the digits of a far cloud.
    origin = exact_centre(y.detach().double(), None if L is None else L.detach())
    here, there = x.double() - origin, y.double() - origin
    dx, dy, dL = grad_tile(here, there, L, log_mass, shift, g_mass, g_shift, kernel, own, unit)
    dl = dw = None
    if unit is not None and weights is not None:
        # d unit / dw = unit / w, and 1 where w = 0.
        w = weights.double()
        size = w.detach().masked_fill(w.detach() == 0, 1.0)
        dw = within_range((dL / size).sum_to_size(weights.shape), weights)
        dL = dL * unit
    if log_weights is not None:
        dl = dL.sum_to_size(log_weights.shape)
    return (dx - g_shift).sum_to_size(x.shape), dy.sum_to_size(y.shape), dl, dw
