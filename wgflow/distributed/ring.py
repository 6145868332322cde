r"""Ring reduction: shards of the samples pass from process to process, and every process sums over all of them.

The pairs (log_mass, shift) of two disjoint sets of samples merge as a monoid, L = log(e^a + e^b) and
S = e^(a - L) S_a + e^(b - L) S_b, so the local sums of any backend are the blocks. Backward, the share of a block in
the upstream gradient follows from L and S alone: dL/da = p, dS/da = p (S_a - S), dS/dS_a = p, with p = e^(a - L).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wgflow.arguments import widened
from wgflow.distributed.processes import Processes, name_of
from wgflow.kernels import Kernel, multiply, rescale
from wgflow.reductions import check_clouds, kernel_shift_f64, sharding
from wgflow.reductions.blocked import gradients_at_zero
from wgflow.reductions.dense import mask_empty_rows, within_range

LOWEST = torch.finfo(torch.float64).min


class Ring:
    """Kernel sums over clouds sharded over the processes of a group; implements `sharding.Shards`.

    Args:
        group: None for all processes.
        backend: of the local sums, one block of (own points, one shard) at a time.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, backend: str = "auto"):
        if backend in sharding.BACKENDS:
            raise ValueError(
                f'backend = {backend!r} is the ring; wanted a backend for its local sums, such as "auto".'
            )
        self.processes, self.backend = Processes(group), backend

    def kernel_shift_f64(
        self, x, y, log_weights, weights, kernel: Kernel, skip_self: bool
    ) -> tuple[Tensor, Tensor]:
        """`kernel_shift_f64` of shards. Raises the same errors on every rank, and ValueError if ranks disagree."""
        mine, error, scale = {}, None, None
        try:
            with sharding.use(self):
                mine = header(x, y, log_weights, weights, kernel, skip_self)
            kernel, scale = kernel.standardize()
            if scale is not None:
                # Divide here and multiply below, as in `reductions.api`: the length scale keeps its gradient.
                scale, x, y = rescale(scale, x, y)
                log_weights, weights = (
                    None if w is None else w.double() for w in (log_weights, weights)
                )
        except Exception as refused:  # of any kind: the other ranks are waiting
            error = refused
        sizes = tuple(h["own"] for h in self.processes.agree(mine, error, x.device))
        if sum(sizes) <= skip_self:
            raise ValueError(
                "y is empty on every rank: there is nothing to average. Leave the term out instead."
                if not skip_self
                else "skip_self=True leaves nothing of one point on all ranks; draw at least two, or skip_self=False."
            )
        call = Call(self, kernel, skip_self, sizes, log_weights is not None)
        log_mass, shift = RingAverage.apply(x, y, log_weights, weights, call)  # type: ignore[misc]
        return log_mass, shift if scale is None else multiply(shift, scale)

    def count(self, y: Tensor) -> int:
        """The number of samples on all processes."""
        header = {"call": "count", "own": y.shape[-2]}
        return sum(h["own"] for h in self.processes.agree(header, None, y.device))

    def log_total(self, weights: Tensor) -> Tensor:
        """log Σ w over the samples of all processes, [..., 1]. Differentiable."""
        header = {
            "call": "log_total",
            "leading dimensions": list(weights.shape[:-1]),
            "dtype": str(weights.dtype),
            "requires_grad": torch.is_grad_enabled() and weights.requires_grad,
        }
        self.processes.agree(header, None, weights.device)
        return LogTotal.apply(weights, self.processes)  # type: ignore[return-value]


def header(
    x: Tensor,
    y: Tensor,
    log_weights: Tensor | None,
    weights: Tensor | None,
    kernel: Kernel,
    skip_self: bool,
) -> dict[str, Any]:
    """The arguments that must agree on all ranks, and the number of samples on this one. Raises: ValueError."""
    check_clouds(x, y, log_weights, skip_self, weights=weights)
    clouds = [t for t in (x, y, log_weights, weights) if t is not None]
    if not all(bool((t < math.inf).all()) for t in (x.abs(), y.abs(), *clouds[2:])):
        raise ValueError(
            "x, y or log_weights holds NaN (or infinity), so the average is not a number; "
            "find the batch with torch.isfinite(t).all()."
        )
    return {
        "call": "kernel_shift",
        "log_weights": "None" if log_weights is None else "given",
        "weights": "None" if weights is None else "given",
        "dimension": x.shape[-1],
        "dtype": [str(t.dtype) for t in clouds],
        "leading dimensions": [
            list(t.shape[:d]) for t, d in zip(clouds, (-2, -2, -1, -1), strict=False)
        ],
        "kernel": name_of(kernel),
        "skip_self": skip_self,
        "requires_grad": [torch.is_grad_enabled() and t.requires_grad for t in clouds],
        "own": y.shape[-2],
    }


@dataclass(frozen=True)
class Call:
    """One reduction round the ring."""

    ring: Ring
    kernel: Kernel
    skip_self: bool
    sizes: tuple[int, ...]  # samples on each rank
    log_weighted: bool  # whether there are log weights

    def shards(
        self, y: Tensor, log_weights: Tensor | None, weights: Tensor | None
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """(rank of its owner, [y, log weights, weights] as far as given), own shard first.

        The next one is received while one is summed.
        """
        p = self.ring.processes
        here = [t.detach().contiguous() for t in (y, log_weights, weights) if t is not None]
        for step in range(p.size):
            there, wait = here, None
            if step < p.size - 1:
                there = self.empty(here, (p.rank - step - 1) % p.size)
                wait = p.pass_on(here, there, f"passing shard {step + 1} of {p.size}")
            yield (p.rank - step) % p.size, here
            if wait is not None:
                wait()
            here = there

    def empty(
        self, like: list[Tensor], rank: int, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """Uninitialised tensors for the shard of a rank: y [..., M, D] and log weights [..., M]."""
        m, (y, *rest) = self.sizes[rank], like
        room = [y.new_empty((*y.shape[:-2], m, y.shape[-1]), dtype=dtype)]
        return room + [w.new_empty((*w.shape[:-1], m), dtype=dtype) for w in rest]

    def weights(self, shard: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """(log weights, weights) of a shard."""
        rest = iter(shard[1:])
        log_weights = next(rest) if self.log_weighted else None
        return log_weights, next(rest, None)

    def block(self, x: Tensor, shard: list[Tensor], own: bool) -> tuple[Tensor, Tensor] | None:
        """(log_mass, shift) of these points against one shard, in float64; None if there is nothing to sum."""
        y, (log_w, w) = shard[0], self.weights(shard)
        skip = self.skip_self and own
        if x.numel() == 0 or y.shape[-2] <= skip:
            return None
        # The local sum would refuse batch elements in which no sample of the shard has weight.
        weightless = []
        if log_w is not None:
            weightless.append(log_w.detach().amax(-1, keepdim=True) == -math.inf)
            log_w = torch.where(weightless[-1], 0, log_w)
        if w is not None:
            weightless.append(w.detach().amax(-1, keepdim=True) == 0)
            w = torch.where(weightless[-1], 1, w)
        with sharding.use(None):
            log_mass, shift = kernel_shift_f64(
                x,
                y,
                kernel=self.kernel,
                log_weights=log_w,
                weights=w,
                skip_self=skip,
                backend=self.ring.backend,
            )
        for empty in weightless:
            log_mass = log_mass.masked_fill(empty, -math.inf)
        return log_mass, shift


class RingAverage(torch.autograd.Function):
    """Two rounds: one for the sums, one for the gradients, whose accumulators travel with their shards."""

    @staticmethod
    def forward(
        ctx, x: Tensor, y: Tensor, log_weights: Tensor | None, weights: Tensor | None, call: Call
    ):
        given = [w for w in (log_weights, weights) if w is not None]
        leads = [x.shape[:-2], y.shape[:-2], *(w.shape[:-1] for w in given)]
        rows = (*torch.broadcast_shapes(*leads), x.shape[-2])
        log_mass = x.new_full(rows, -math.inf, dtype=torch.float64)
        shift = x.new_zeros((*rows, x.shape[-1]), dtype=torch.float64)
        weighty = [w.new_zeros((*w.shape[:-1], 1), dtype=torch.bool) for w in given]
        nothing = [-math.inf] * (log_weights is not None) + [0.0] * (weights is not None)
        for rank, shard in call.shards(y, log_weights, weights):
            for found, w, zero in zip(weighty, shard[1:], nothing, strict=True):
                if w.shape[-1]:
                    found |= w.amax(-1, keepdim=True) > zero
            part = call.block(x, shard, rank == call.ring.processes.rank)
            if part is not None:
                log_mass, shift = merge((log_mass, shift), part)
        if not all(bool(w.all()) for w in weighty):  # on every rank: each has seen all shards
            raise ValueError(
                "all weights of y are zero in some batch element, on all ranks together; weigh one of them, or leave "
                "the term out."
            )
        ctx.call = call
        ctx.save_for_backward(x, y, log_weights, weights, log_mass, shift)
        return log_mass, shift

    @staticmethod
    def backward(ctx, g_mass, g_shift):  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True through the ring: its second derivative would hold every pair of points. "
                'Gather the clouds on one process and pass backend="dense".'
            )
        x, y, log_weights, weights, log_mass, shift = ctx.saved_tensors
        call: Call = ctx.call
        p, samples = call.ring.processes, any(ctx.needs_input_grad[1:4])
        given = [t is not None for t in (x, y, log_weights, weights)]
        wants = [want for want, there in zip(ctx.needs_input_grad, given, strict=False) if there]
        dx = torch.zeros_like(x, dtype=torch.float64)
        behind: list[Tensor] = []
        for rank, shard in call.shards(y, log_weights, weights):
            # Gradients follow their shard one step behind; those of this block are computed while others arrive.
            ahead = call.empty(shard, rank, torch.float64) if samples else []
            own, doing = rank == p.rank, "passing gradients on"
            wait = None if own else p.pass_on(behind, ahead, doing, channel=1)
            parts = share(call, x, shard, own, wants, (log_mass, shift, g_mass, g_shift))
            if wait is None:
                for t in ahead:
                    t.zero_()
            else:
                wait()
            for total, part in zip((dx, *ahead), parts, strict=False):
                if part is not None:
                    total += part
            behind = ahead
        if samples and p.size > 1:
            home = call.empty(behind, p.rank)
            p.pass_on(behind, home, "bringing gradients home", channel=1)()
            behind = home
        if not samples:
            return dx.to(x.dtype), None, None, None, None
        dl, dw = call.weights(behind)
        if weights is not None and dw is not None:
            dw = within_range(dw, weights)
        dl = None if dl is None else dl.to(log_weights.dtype)
        return dx.to(x.dtype), behind[0].to(y.dtype), dl, dw, None


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) over the union of two disjoint sets of samples. Associative and commutative."""
    log_mass = torch.logaddexp(a[0], b[0])
    of_a, of_b = (portion(part, log_mass).unsqueeze(-1) for part in (a[0], b[0]))
    return log_mass, of_a * a[1] + of_b * b[1]


def portion(part: Tensor, log_mass: Tensor) -> Tensor:
    """e^(part - log_mass), 0 where there is no mass at all."""
    return (part - log_mass.clamp_min(LOWEST)).exp()


def share(call: Call, x: Tensor, shard: list[Tensor], own: bool, wants, at) -> list[Tensor | None]:
    """[dx, dy, d log w] of one block, by the backward of its local sum, computed again.

    The losing side, keeping (log_mass, shift) of each block: one forward less, but memory O(N world_size).
    """
    w = call.weights(shard)[1]
    if w is not None and wants[-1] and w.numel() and bool((w == 0).any()):
        return share_at_zero(call, x, shard, own, at)
    log_mass, shift, g_mass, g_shift = at
    # Half precision is widened, so that each block's gradient is not rounded to it before they are added.
    wide = [widened(t.detach()) for t in (x, *shard)]
    leaves = [t.requires_grad_(want) for t, want in zip(wide, wants, strict=False)]
    with torch.enable_grad():
        part = call.block(leaves[0], leaves[1:], own)
    if part is None:
        return [None] * len(leaves)
    p = portion(part[0].detach(), log_mass)
    down = p * (g_mass + (g_shift * (part[1].detach() - shift)).sum(-1)), p.unsqueeze(-1) * g_shift
    grads = iter(torch.autograd.grad(part, [t for t in leaves if t.requires_grad], down))
    return [next(grads) if t.requires_grad else None for t in leaves]


def share_at_zero(call: Call, x: Tensor, shard: list[Tensor], own: bool, at) -> list[Tensor | None]:
    """`share` with weights of 0, whose derivatives the masses of the block alone do not determine."""
    log_mass, shift, g_mass, g_shift = at
    part = call.block(x, shard, own)
    if part is None:
        return [None] * (1 + len(shard))
    g_shift = mask_empty_rows(g_shift, log_mass)
    log_w, w = call.weights(shard)
    dx, dy, dl, dw = gradients_at_zero(
        x, shard[0], log_w, w, log_mass, shift, g_mass, g_shift, call.kernel, call.skip_self and own
    )
    # The -x of shift = barycentre - x belongs to this block in part only.
    rest = (1 - portion(part[0], log_mass)).unsqueeze(-1) * g_shift
    return [g for g in (dx + rest.sum_to_size(x.shape), dy, dl, dw) if g is not None]


class LogTotal(torch.autograd.Function):
    """log Σ w over all ranks. Each result depends on all weights, so gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx, weights: Tensor, processes: Processes) -> Tensor:
        own = sharding.log_sum(weights).contiguous()
        total = torch.stack(processes.all_gather(own, "adding the weights")).logsumexp(0)
        ctx.processes = processes
        ctx.save_for_backward(weights, total)
        return total

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[override]
        weights, total = ctx.saved_tensors
        g = torch.stack(
            ctx.processes.all_gather(g.contiguous(), "adding gradients of the weights")
        ).sum(0)
        return within_range((g * (-total).exp()).expand(weights.shape), weights), None
