r"""Communication within a process group: agreement on arguments, transfers round a ring, lost processes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wgflow.kernels import Kernel

HEADER_BYTES = 2048


class LostProcess(RuntimeError):
    """A process of the group died, hangs or raised, so that the sum cannot be completed."""


class Processes:
    """A process group as a ring: this rank and its neighbours.

    Raises:
        RuntimeError: When no process group is initialised.
        ValueError: When this process is not in `group`.
    """

    def __init__(self, group: dist.ProcessGroup | None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                'backend = "distributed" needs a process group, and none is initialised. On every process, call '
                'torch.distributed.init_process_group("gloo") first ("nccl" on GPUs; torchrun sets what it reads); '
                'for clouds that are whole on this process, leave backend="auto".'
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(
                "this process is not in `group`; call from its members only, or pass group=None."
            )
        whole = group if group is not None else dist.group.WORLD
        assert whole is not None
        self.after, self.before = (
            dist.get_global_rank(whole, (self.rank + step) % self.size) for step in (1, -1)
        )

    @contextmanager
    def watch(self, doing: str) -> Iterator[None]:
        """Turn communication errors into `LostProcess`."""
        try:
            yield
        except RuntimeError as error:  # what torch raises for a closed connection and for a timeout
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise LostProcess(
                f"rank {self.rank} of {self.size} lost another process while {doing} ({said[0][:200]}). It has died, "
                "hangs, did not make this call, or raised an error: see the log of the first to fail. The group cannot "
                "be used any more; restart all its processes (torchrun --max-restarts does)."
            ) from error

    def agree(
        self, header: dict[str, Any], error: Exception | None, device: torch.device
    ) -> list[dict[str, Any]]:
        """Exchange headers, which must agree but for "own"; an error on one rank is raised on all.

        One all_gather of HEADER_BYTES per rank. Returns: the headers of all ranks.

        Raises:
            Exception: `error`, if it is given.
            ValueError: On the other ranks or if headers disagree.
        """
        self._check_device(device)
        said = {**header, "error": None if error is None else str(error)[:300]}
        text = json.dumps(said, ensure_ascii=False).encode()[:HEADER_BYTES].ljust(HEADER_BYTES)
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
        headers = [
            json.loads(bytes(t.tolist())) for t in self.all_gather(mine, "comparing the arguments")
        ]
        if error is not None:
            raise error
        for rank, other in enumerate(headers):
            if other["error"] is not None:
                raise ValueError(f"rank {rank} refused its part: {other['error']}")
        for key in (k for k in headers[0] if k not in ("own", "error")):
            for rank, other in enumerate(headers):
                if other.get(key) != headers[0][key]:
                    raise ValueError(
                        f"the processes disagree on {key}: {headers[0][key]!r} on rank 0, {other.get(key)!r} on rank "
                        f"{rank}; make the same call on every rank."
                    )
        return headers

    def all_gather(self, mine: Tensor, doing: str) -> list[Tensor]:
        """The tensors of all ranks, of one shape."""
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self.watch(doing):
            dist.all_gather(parts, mine, group=self.group)
        return parts

    def pass_on(
        self, out: list[Tensor], into: list[Tensor], doing: str, channel: int = 0
    ) -> Callable[[], None]:
        """Send `out` to the next rank and receive `into` from the previous one; return a function that waits.

        Do not touch either list before. Batched, so that NCCL posts all transfers at once; empty tensors are not sent.
        """
        ops = [
            dist.P2POp(way, t, peer, self.group, 2 * channel + i)
            for way, peer, tensors in (
                (dist.isend, self.after, out),
                (dist.irecv, self.before, into),
            )
            for i, t in enumerate(tensors)
            if t.numel()
        ]
        with self.watch(doing):
            works = dist.batch_isend_irecv(ops) if ops else []

        def wait() -> None:
            with self.watch(doing):
                for work in works:
                    work.wait()

        return wait

    def _check_device(self, device: torch.device) -> None:
        wrong = {"gloo": "cuda", "nccl": "cpu"}.get(dist.get_backend(self.group))
        if device.type == wrong:
            raise ValueError(
                f"x is on {device}, which the group's {dist.get_backend(self.group)!r} does not carry; "
                'init_process_group("cpu:gloo,cuda:nccl") carries both.'
            )


def name_of(kernel: Kernel) -> str:
    """A name of at most 160 characters that is the same on all processes for equal kernels."""
    plain, scale = kernel.standardize()
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(plain))
    if scale is not None:
        text += f" with length_scale {list(scale.shape)} {scale.detach().flatten().tolist()}"
    if len(text) <= 160:
        return text
    return f"{text[:120]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
