r"""The kernel sums over torch.distributed: clouds larger than one device, sharded over the processes of a group.

Every process holds a shard of x and a shard of y, of any size. The shards of y travel round a ring; after world_size
steps each process has (log_mass, shift) of its own x against *all* y. A second round brings the gradients of y home.

    dist.init_process_group("gloo")                     # or "nccl": the same code
    with wgflow.distributed.sharded():                  # every field and KDE inside sums over all processes
        V = wgflow.drifting_field(x, pos, neg, kernel=Gaussian(0.1))

What travels per step and rank, the next shard while one is summed: M_r (D + 1) numbers in the dtypes of y and its
weights, M_r D without weights; backward also as many float64 gradients, but only if y or its weights want any. Memory
is O(N + M) of a shard, and what the local sums need. A header of 2 kB a rank goes first, so that a mismatch is an error
on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from wgflow import sums
from wgflow.distributed.processes import LostProcess
from wgflow.distributed.ring import Ring
from wgflow.kernels import Kernel
from wgflow.sums import sharding

__all__ = ["LostProcess", "kernel_average", "kernel_shift", "sharded"]

sharding.BACKENDS["distributed"] = Ring


@contextmanager
def sharded(group: dist.ProcessGroup | None = None, *, backend: str = "auto") -> Iterator[None]:
    r"""Inside, clouds are shards: fields, KDEs and sums run over the union of what the processes of `group` hold.

    A collective: every process of the group makes the same calls in the same order, backward included, with shards of
    any size, empty ones too as long as the union is not. Each gets the results for its own points, and as gradients
    those of the *sum* of all processes' losses. skip_self pairs x[i] with y[i] of the same process.

    What sums over all processes: `kernel_average`, `kernel_shift`, `mean_shift`, `drifting_field`, `likelihood_field`,
    `energy_field`, `mmd_field`, `blob_field`, `KDE.log_density`, `.score`, `.hessian`. What holds all pairs or mixes
    means over x in is refused: metrics, `published_field`, `stein_field`, normalized and relative fields,
    `leave_one_out`, responsibilities. A mean over x alone, such as a loss, is one over the points of this process;
    values of functionals are not for shards either.

    Args:
        group: None for all processes. backend: of the local sums, as in `kernel_average`.
    Raises: RuntimeError when no process group is initialised. The sums inside raise ValueError on every rank where
        one rank's clouds are wrong or two ranks disagree, and `LostProcess` within the group's timeout when a process
        dies or hangs, or when a field refuses its arguments before its first sum on one rank alone (NCCL
        ends the process instead, unless TORCH_NCCL_BLOCKING_WAIT=1).
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
    Raises: as `sharded`.
    """
    with sharded(group):
        return sums.kernel_average(
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
        return sums.kernel_shift(x, y, kernel=kernel, log_weights=log_weights, skip_self=skip_self)
