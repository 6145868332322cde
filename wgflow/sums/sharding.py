r"""Where the samples are: whole on this process, or in shards over several, which then sum together.

`wgflow.distributed` enters itself here, because imports go down the list and the sums lie above it.
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
    """Processes that each hold a part of every cloud: the two sums over samples that the library is made of."""

    backend: str  # of the local sums

    def double_shift(
        self, x: Tensor, y: Tensor, log_weights: Tensor | None, kernel: Kernel, skip_self: bool
    ) -> tuple[Tensor, Tensor]: ...

    def count(self, y: Tensor) -> int: ...

    def log_total(self, log_weights: Tensor) -> Tensor: ...


BACKENDS: dict[str, Callable[[], Shards]] = {}  # the names of `backend=` that reach other processes
_current: ContextVar[Shards | None] = ContextVar("wgflow_shards", default=None)


def current() -> Shards | None:
    """The processes that clouds are sharded over here; None where they are whole."""
    return _current.get()


@contextmanager
def use(shards: Shards | None) -> Iterator[None]:
    token = _current.set(shards)
    try:
        yield
    finally:
        _current.reset(token)


def behind(backend: str) -> Shards | None:
    """Who sums under this `backend=`: None for this process alone. "auto" is whatever encloses the call."""
    if backend in BACKENDS:
        return current() or BACKENDS[backend]()
    return current() if backend == "auto" else None


def only_whole(what: str) -> None:
    """Refuse, where clouds are sharded, what would mix sums over all samples with this process's own.

    Raises: ValueError inside `wgflow.distributed.sharded`.
    """
    if current() is not None:
        raise ValueError(
            f"{what} cannot be had from shards: it holds all pairs, or is a mean over x. Call it outside "
            "`wgflow.distributed.sharded`, on clouds that are whole."
        )


def log_total(y: Tensor, log_weights: Tensor | None, skip_self: bool = False) -> Tensor | float:
    """log Σ w over the samples that an average of `kernel_shift` runs over, on whatever process they are.

    y: [..., M, D]; log_weights [..., M] or None. Returns: a float without weights, else [..., 1], or [..., N] when each
    point leaves itself out. Differentiable in the weights.
    """
    shards = current()
    if log_weights is None:
        count = y.shape[-2] if shards is None else shards.count(y)
        return math.log(count - skip_self)
    total = (
        log_weights.logsumexp(-1, keepdim=True) if shards is None else shards.log_total(log_weights)
    )
    return total + torch.log1p(-(log_weights - total).exp()) if skip_self else total
