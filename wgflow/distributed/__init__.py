r"""Kernel sums over torch.distributed: clouds larger than one device, sharded over the processes of a group.

Every process holds a shard of x and a shard of y, of any size. The shards of y pass round a ring; after world_size
steps each process has (log_mass, shift) of its own x against *all* y.
A second round returns the gradients of y. Usage::

    dist.init_process_group("gloo")                     # or "nccl": the same code
    with wgflow.distributed.sharded():                  # every field and KDE inside sums over all processes
        V = wgflow.drifting_field(x, pos, neg, kernel=Gaussian(0.1))

Traffic per step and rank, overlapping the sums: M_r (D + 1) numbers in the dtypes of y and its weights, M_r D without
weights; backward also as many float64 gradients, but only if y or its weights require them. Memory is O(N + M) of a
shard, and that of the local sums. A header of 2 kB per rank comes first, so that a mismatch raises on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from wgflow import reductions
from wgflow.distributed.processes import LostProcess
from wgflow.distributed.ring import Ring
from wgflow.kernels import Kernel
from wgflow.reductions import sharding

__all__ = ["LostProcess", "kernel_average", "kernel_shift", "sharded"]

sharding.BACKENDS["distributed"] = Ring


@contextmanager
def sharded(group: dist.ProcessGroup | None = None, *, backend: str = "auto") -> Iterator[None]:
    r"""Treat clouds as shards: fields, KDEs and sums inside run over the union of the clouds of all processes.

    Collective: every process of the group makes the same calls in the same order, backward included, with shards of
    any size, empty ones too if the union is not. Each obtains the results for its own points, and the gradients of the
    *sum* of the losses of all processes. skip_self pairs x[i] with y[i] of the same process.

    Summed over all processes: `kernel_average`, `kernel_shift`, `mean_shift`, `drifting_field`,
    `likelihood_field`, `energy_field`, `mmd_field`, `blob_field`, `KDE.log_density`, `KDE.score`,
    `KDE.hessian`. Refused, since they hold all pairs or involve means over x: metrics,
    `published_field`, `stein_field`, normalized and relative fields, `leave_one_out`,
    responsibilities. A mean over x alone, such as a loss, is over the points of this process; do
    not take values of functionals of shards.

    Args:
        group: None for all processes.
        backend: of the local sums, as in `kernel_average`.

    Raises:
        RuntimeError: When no process group is initialised. The sums inside raise ValueError on
            every rank where one rank's clouds are wrong or two ranks disagree, and `LostProcess`
            within the group's timeout when a process dies or hangs, or when a field refuses its
            arguments before its first sum on one rank alone (NCCL ends the process instead, unless
            TORCH_NCCL_BLOCKING_WAIT=1).
    """
    with sharding.use(Ring(group, backend)):
        yield


def kernel_average(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    r"""`wgflow.kernel_average` of this process's x [..., N, D] against the y [..., M, D] of all processes of `group`.

    log_weights [..., M] weigh this process's y; None on one rank is None on all. Returns, for this process's points:
    log_mass [..., N], barycentre [..., N, D]. Gradients: to x, y and log_weights, first derivatives only.
    Raises what `sharded` raises.
    """
    with sharded(group):
        return reductions.kernel_average(
            x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self
        )


def kernel_shift(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """(log_mass, barycentre - x) of `kernel_average`, exact also when the step is tiny. All else as there."""
    with sharded(group):
        return reductions.kernel_shift(
            x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self
        )
