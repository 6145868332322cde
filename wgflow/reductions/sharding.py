r"""Whether clouds are whole on this process, or sharded over several processes that sum together.

`wgflow.distributed` registers itself here, since the sums do not import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from wgflow.kernels import Kernel


class Shards(Protocol):
    """Processes that each hold a part of every cloud, and the sums over all of them."""

    backend: str  # of the local sums

    def kernel_shift_f64(
        self,
        x: Tensor,
        y: Tensor,
        log_weights: Tensor | None,
        weights: Tensor | None,
        kernel: Kernel,
        skip_self: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def count(self, y: Tensor) -> int: ...

    def log_total(self, weights: Tensor) -> Tensor: ...


BACKENDS: dict[str, Callable[[], Shards]] = {}  # values of `backend=` that involve other processes
_current: ContextVar[Shards | None] = ContextVar("wgflow_shards", default=None)
_in_use: list[Shards | None] = []  # of all contexts of this process


def current() -> Shards | None:
    """The processes over which clouds are sharded in this context; None where clouds are whole."""
    # torch.compile cannot trace a context variable. It guards on the length of this list: what was compiled for whole
    # clouds is not run inside `sharded`, where the graph breaks.
    if torch.compiler.is_compiling() and not _in_use:
        return None
    return _current.get()


@contextmanager
def use(shards: Shards | None) -> Iterator[None]:
    """Set `current` inside."""
    token = _current.set(shards)
    _in_use.append(shards)
    try:
        yield
    finally:
        _in_use.pop()
        _current.reset(token)


def shards_of(backend: str) -> Shards | None:
    """The processes that sum for this `backend=`; None for this process alone. "auto" takes those of the context."""
    if backend in BACKENDS:
        return current() or BACKENDS[backend]()
    return current() if backend == "auto" else None


def require_unsharded(what: str) -> None:
    """Refuse to compute `what` from shards. Raises: ValueError inside `wgflow.distributed.sharded`."""
    if current() is not None:
        raise ValueError(
            f"{what} cannot be computed from shards: it holds all pairs, or is a mean over x. Call it outside "
            "`wgflow.distributed.sharded`, on whole clouds."
        )


def log_sum(weights: Tensor) -> Tensor:
    """log Σ w in float64, [..., 1], for weights of any size; its derivative exists at w = 0. -inf if all are 0."""
    w = weights.double()
    if w.shape[-1] == 0:  # an empty shard
        return w.sum(-1, keepdim=True).log()
    largest = w.detach().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == 0, 1.0)
    return (w / largest).sum(-1, keepdim=True).log() + largest.log()


def log_total(y: Tensor, weights: Tensor | None, skip_self: bool = False) -> Tensor | float:
    """log Σ w over all samples of an average of `kernel_shift`, those on other processes included.

    Args:
        y: [..., M, D].
        weights: [..., M], w >= 0, or None for w = 1.
        skip_self: each point leaves itself out.

    Returns:
        A float without weights, else float64 [..., 1], or [..., N] with `skip_self`. Differentiable in
        the weights, at 0 too.
    """
    shards = current()
    if weights is None:
        count = y.shape[-2] if shards is None else shards.count(y)
        return math.log(count - skip_self)
    total = log_sum(weights) if shards is None else shards.log_total(weights)
    if not skip_self:
        return total
    return total + torch.log1p(-weights.double() / total.exp())
