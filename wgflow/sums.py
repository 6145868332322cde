r"""The waist: the only place where samples are summed.

`kernel_shift` returns (log Σ_j w_j k_ij, Σ_j W_ij (y_j - x_i)) with W the weights normalised over j.
Everything above it is algebra. One forward tile, one backward tile and one merge rule serve the dense and the
streaming backend; the merge of (max, sum, weighted sum) is associative, so blocks, processes and machines are
the same algorithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.kernels import Kernel

__all__ = ["kernel_average", "kernel_shift"]

DENSE_PAIRS = 1 << 22  # `auto` streams above this many (x, y) pairs: 32 MB for each matrix of pairs
TILE_PAIRS = 1 << 18  # pairs in one streamed tile: 2 MB, near the size of a core's cache


def kernel_average(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The reduction of the library: log_mass = log Σ_j w_j k(x, y_j) and barycentre = Σ_j w_j k y_j / Σ_j w_j k.

    Where only barycentre - x is wanted, `kernel_shift` keeps the digits that this sum rounds away.

    Args:
        x: [..., N, D] points; y: [..., M, D] samples. Leading dimensions broadcast. Same dtype and device.
        kernel: its lengths are in the units of `x`.
        log_weights: [..., M] or None for w = 1; -inf removes a sample. Not normalised here.
        skip_self: leave y[i] out for x[i]. Needs N = M; only meaningful when y *is* x.
        backend: "dense" (one matrix of pairs), "streaming" (blocks, memory linear in N + M), "auto" (by
            size).
    Returns: log_mass [..., N], barycentre [..., N, D], in the dtype of x; computed in float64 whatever that
        dtype is. Where no sample has weight (compact kernels), log_mass is -inf and the barycentre is x
        itself.
    Gradients: flow to x, y and log_weights; a second derivative exists for "dense" only.
    Raises: ValueError on shapes, dtypes, devices, empty sets, weights that are all zero, NaN (checked on the
        CPU only: on a GPU the check would make every call wait).
    """
    log_mass, shift = kernel_shift(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return log_mass, x + shift


def kernel_shift(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""(log_mass, barycentre - x): `kernel_average` read from where one stands, exact also when the step is tiny.

    Arguments, gradients and errors as `kernel_average`. Returns: log_mass [..., N], shift [..., N, D], a
    length.
    """
    log_mass, shift = double_shift(
        x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self, backend=backend
    )
    return (log_mass, shift) if x.dtype == torch.float64 else (log_mass.to(x.dtype), shift.to(x.dtype))


def double_shift(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""`kernel_shift` before it is rounded to the dtype of x: fields subtract and exponentiate masses, then round once.

    The weights may already be float64 whatever x is. Arguments, gradients and errors otherwise as `kernel_average`.
    """
    check_clouds(x, y, log_weights, skip_self)
    if backend == "auto":
        pairs = math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])) * x.shape[-2] * y.shape[-2]
        backend = "dense" if pairs <= DENSE_PAIRS else "streaming"
    if backend not in ("dense", "streaming"):
        raise ValueError(f'backend = {backend!r} is unknown; wanted "auto", "dense" or "streaming".')

    # All of it in float64: at small sizes the cast costs less than one launch, and it is what keeps small h,
    # large offsets and far points right in float32. The losing side: float32 sums, off by .1 h at h = 1e-3.
    if x.dtype == torch.float64:
        origin = y.detach().mean(-2, keepdim=True)  # float32 input has digits to spare without centring
        x, y = x - origin, y - origin
    else:
        x, y = x.double(), y.double()
        log_weights = None if log_weights is None else log_weights.double()
    tensors = (x, y) if log_weights is None else (x, y, log_weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        average = _DenseAverage if backend == "dense" else _StreamingAverage
        log_mass, shift = average.apply(x, y, log_weights, kernel, skip_self)  # type: ignore[misc]
    else:
        log_mass, shift = (_dense if backend == "dense" else _stream)(x, y, log_weights, kernel, skip_self)
    refuse_nan(log_mass, "x, y or log_weights")
    refuse_nan(shift, "x, y or log_weights")
    return log_mass, shift


def log_of_weights(weights: Tensor | None) -> Tensor | None:
    """Masses w >= 0 -> the log weights of the sums; None stays None. Raises: ValueError on a negative mass or NaN."""
    if weights is None:
        return None
    if not bool((weights.detach() >= 0).all()):
        raise ValueError(
            "weights hold a negative number or NaN; they are masses, w >= 0. From logits, use logits.softmax(-1)."
        )
    return weights.log()


def check_clouds(x: Tensor, y: Tensor, log_weights: Tensor | None, skip_self: bool, names=("x", "y")) -> None:
    """Refuse clouds that cannot be averaged, naming the argument and a way out. Raises: ValueError."""
    a, b = names
    if x.dim() < 2 or y.dim() < 2:
        raise ValueError(
            f"{a} is {list(x.shape)} and {b} is {list(y.shape)}; both must be [..., n, D]. One point is t[None]."
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{b} has dimension {y.shape[-1]} but {a} has {x.shape[-1]}; both must be [..., n, D]. "
            "For sequences, flatten time into D first: t.flatten(-2)."
        )
    if x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(
            f"{a} is {x.dtype} and {b} is {y.dtype}; both must share one floating dtype: {b}.to({a})."
        )
    if x.device != y.device:
        raise ValueError(f"{a} is on {x.device} and {b} on {y.device}; move one: {b}.to({a}.device).")
    if y.shape[-2] == 0:
        raise ValueError(
            f"{b} is empty ({list(y.shape)}): there is nothing to average. Leave the term out instead."
        )
    if skip_self:
        if x.shape[-2] != y.shape[-2]:
            raise ValueError(
                f"skip_self=True pairs {a}[i] with {b}[i], but there are {x.shape[-2]} and {y.shape[-2]} points; "
                f"pass the same cloud as both, or skip_self=False."
            )
        if y.shape[-2] == 1:
            raise ValueError(
                "skip_self=True leaves nothing of a cloud of one point; draw at least two, or skip_self=False."
            )
    if log_weights is not None:
        if (
            log_weights.shape[-1:] != y.shape[-2:-1]
            or log_weights.dtype not in (y.dtype, torch.float64)
            or log_weights.device != y.device
        ):
            raise ValueError(
                f"the weights are {list(log_weights.shape)} {log_weights.dtype} on {log_weights.device}; "
                f"wanted [..., {y.shape[-2]}] {y.dtype} on {y.device}, one for each point of {b}."
            )
        if not bool((log_weights.detach().amax(-1) > -math.inf).all()):
            raise ValueError(
                f"all weights of {b} are zero (or NaN) in some batch element; weigh one of them, or leave the term out."
            )


def refuse_nan(result: Tensor, names: str) -> None:
    """Refuse a result that holds NaN, on the CPU: on a GPU this would make every call wait. Raises: ValueError."""
    if result.device.type == "cpu" and not torch.compiler.is_compiling() and bool(result.isnan().any()):
        raise ValueError(
            f"{names} holds NaN (or infinity), so the average is not a number; "
            "find the batch with torch.isfinite(t).all()."
        )


# -- tiles --------------------------------------------------------------------------------------------------


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # Direct differences. |x|² - 2xy + |y|² is one matrix product and faster, but cancels: eps |x|²/h² in the
    # logit.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _logits(sq: Tensor, log_weights: Tensor | None, kernel: Kernel, diagonal: int | None) -> Tensor:
    """log w_j k_ij of one tile; `diagonal` is the offset of its own entries (i = j), or None."""
    logits = kernel.log(sq)
    if log_weights is not None:
        logits = logits + log_weights.unsqueeze(-2)
    if diagonal is not None:
        logits.diagonal(diagonal, -2, -1).fill_(-math.inf)  # kernel.log returns a fresh tensor
    return logits


def _sum_tile(x, y, log_weights, kernel, diagonal) -> tuple[Tensor, Tensor, Tensor]:
    """(row maximum, Σ e, Σ e y) of one tile, e = exp(logit - maximum)."""
    logits = _logits(_squared_distances(x, y), log_weights, kernel, diagonal)
    # Subtract the row maximum before exp: at |x - y| = 100 h every weight underflows, and 0/0 is a NaN drift.
    # Rows without any weight have maximum -inf; the lowest finite number in its place leaves their e at 0.
    top = logits.amax(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    e = (logits - top).exp_()
    return top, e.sum(-1, keepdim=True), e @ y


def _merge(
    a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over two disjoint sets of samples -> the sums over their union. Associative: blocks, ranks and
    machines alike.
    """
    top = torch.maximum(a[0], b[0])
    scale_a, scale_b = (a[0] - top).exp_(), (b[0] - top).exp_()
    return top, a[1] * scale_a + b[1] * scale_b, a[2] * scale_a + b[2] * scale_b


def _finish(x: Tensor, sums: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    top, total, moment = sums
    shift = (moment / total).sub_(x).masked_fill_(total == 0, 0.0)
    return (total.log() + top).squeeze(-1), shift


def _grad_tile(x, y, log_weights, log_mass, shift, g_mass, g_shift, kernel, diagonal):
    r"""Gradients of one tile, from W = w k / mass and S = w slope / mass alone (nothing of size N x M was kept).

    With u_ij = g_mass_i + g_shift_i · (y_j - x_i - shift_i): d log w_j = Σ_i W u;
    dx_i = Σ_j S u (y_j - x_i); dy_j = Σ_i W g_shift_i - Σ_i S u (y_j - x_i). (The -g_shift of shift = b - x:
    by the caller.)
    """
    sq = _squared_distances(x, y)
    norm = log_mass.clamp_min(torch.finfo(log_mass.dtype).min).unsqueeze(-1)
    W = (_logits(sq, log_weights, kernel, diagonal) - norm).exp()
    S = (_logits(sq, log_weights, kernel.slope, diagonal) - norm).exp()
    u = g_shift @ y.mT + (g_mass - (g_shift * (x + shift)).sum(-1)).unsqueeze(-1)
    Su = S * u
    dx = Su @ y - Su.sum(-1, keepdim=True) * x
    dy = W.mT @ g_shift + Su.mT @ x - Su.sum(-2).unsqueeze(-1) * y
    return dx, dy, (W * u).sum(-2)


# -- backends -----------------------------------------------------------------------------------------------


def _dense(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    return _finish(x, _sum_tile(x, y, log_weights, kernel, 0 if skip_self else None))


def _blocks(x: Tensor, y: Tensor) -> tuple[range, range, int, int]:
    """Starts and widths of row and column blocks, so that a tile holds about TILE_PAIRS pairs over the whole batch."""
    batch = max(1, math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])))
    side = max(1, math.isqrt(TILE_PAIRS // batch)) if batch < TILE_PAIRS else 1
    n, m = x.shape[-2], y.shape[-2]
    wide = min(m, side)
    tall = min(n, max(1, TILE_PAIRS // (batch * wide)))
    wide = min(m, max(1, TILE_PAIRS // (batch * tall)))
    return range(0, n, tall), range(0, m, wide), tall, wide


def _tiles(x, y, log_weights, skip_self):
    """(rows, columns, log weights of these columns, diagonal) of every tile, column by column within a row of tiles."""
    rows, columns, tall, wide = _blocks(x, y)
    for i in rows:
        for j in columns:
            part = None if log_weights is None else log_weights[..., j : j + wide]
            own = i - j if skip_self and i < j + wide and j < i + tall else None
            yield slice(i, i + tall), slice(j, j + wide), part, own


def _stream(x, y, log_weights, kernel, skip_self) -> tuple[Tensor, Tensor]:
    done: list[tuple[Tensor, Tensor]] = []
    sums, rows = None, None
    for r, c, part, own in _tiles(x, y, log_weights, skip_self):
        tile = _sum_tile(x[..., r, :], y[..., c, :], part, kernel, own)
        if r != rows:
            if sums is not None:
                done.append(_finish(x[..., rows, :], sums))
            sums, rows = tile, r
        else:
            sums = _merge(sums, tile)  # type: ignore[arg-type]
    done.append(_finish(x[..., rows, :], sums))  # type: ignore[arg-type]
    return torch.cat([d[0] for d in done], -1), torch.cat([d[1] for d in done], -2)


def _forward(ctx, x, y, log_weights, kernel, skip_self, run):
    log_mass, shift = run(x, y, log_weights, kernel, skip_self)
    ctx.kernel, ctx.skip_self = kernel, skip_self
    ctx.save_for_backward(x, y, log_weights, log_mass, shift)
    return log_mass, shift


class _DenseAverage(torch.autograd.Function):
    """One matrix of pairs. Its backward is made of differentiable operations, so a second derivative exists."""

    @staticmethod
    def forward(ctx, x, y, log_weights, kernel, skip_self):
        return _forward(ctx, x, y, log_weights, kernel, skip_self, _dense)

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        x, y, log_weights, log_mass, shift = ctx.saved_tensors
        own = 0 if ctx.skip_self else None
        dx, dy, dw = _grad_tile(x, y, log_weights, log_mass, shift, g_mass, g_shift, ctx.kernel, own)
        dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
        return (dx - g_shift).sum_to_size(x.shape), dy.sum_to_size(y.shape), dw, None, None


class _StreamingAverage(torch.autograd.Function):
    """Blocks. Memory O(N + M) forward and backward; a second derivative would not be, so it is refused."""

    @staticmethod
    def forward(ctx, x, y, log_weights, kernel, skip_self):
        return _forward(ctx, x, y, log_weights, kernel, skip_self, _stream)

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
        for r, c, part, own in _tiles(x, y, log_weights, ctx.skip_self):
            at = (log_mass[..., r], shift[..., r, :], g_mass[..., r], g_shift[..., r, :])
            dx_tile, dy_tile, dw_tile = _grad_tile(x[..., r, :], y[..., c, :], part, *at, ctx.kernel, own)
            dx[..., r, :] += dx_tile
            dy[..., c, :] += dy_tile
            dw[..., c] += dw_tile
        dw = None if log_weights is None else dw.sum_to_size(log_weights.shape)
        return dx.sum_to_size(x.shape), dy.sum_to_size(y.shape), dw, None, None
