r"""What processes say to each other: a header that must agree, tensors to the next in the ring, and who is lost."""

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
    """A process of the group died, hangs, or left on an error of its own, so that the sum cannot be finished."""


class Processes:
    """A process group as a ring: this rank, its neighbours, and errors that say what was lost.

    Raises: RuntimeError when no process group is initialised; ValueError when this process is not in `group`.
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
        try:
            yield
        except RuntimeError as error:  # what torch raises for a closed connection and for a timeout
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise LostProcess(
                f"rank {self.rank} of {self.size} lost another process while {doing} ({said[0][:200]}). It has died, "
                "hangs, did not make this call, or left on an error of its own: the log of the first to fail says "
                "which. The group is of no use any more; restart all its processes (torchrun --max-restarts does)."
            ) from error

    def agree(
        self, header: dict[str, Any], error: Exception | None, device: torch.device
    ) -> list[dict[str, Any]]:
        """Every rank's header. All but its "own" must be the same; a rank's error is an error on all of them.

        One all_gather of HEADER_BYTES a rank. Raises: `error` where there is one, ValueError on the other ranks.
        """
        self._reaches(device)
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
                        f"{rank}. Only the numbers of points may differ; make the same call on every rank."
                    )
        return headers

    def all_gather(self, mine: Tensor, doing: str) -> list[Tensor]:
        """One tensor a rank, of one shape."""
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self.watch(doing):
            dist.all_gather(parts, mine, group=self.group)
        return parts

    def pass_on(
        self, out: list[Tensor], into: list[Tensor], doing: str, channel: int = 0
    ) -> Callable[[], None]:
        """Start sending `out` to the next rank and filling `into` from the one before. Returns: what waits for both.

        Neither list may be touched before that. Batched, so that NCCL posts all of them at once; empty ones stay home.
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

    def _reaches(self, device: torch.device) -> None:
        wrong = {"gloo": "cuda", "nccl": "cpu"}.get(dist.get_backend(self.group))
        if device.type == wrong:
            raise ValueError(
                f"x is on {device}, which the group's {dist.get_backend(self.group)!r} does not carry; "
                'init_process_group("cpu:gloo,cuda:nccl") carries both.'
            )


def name_of(kernel: Kernel) -> str:
    """What a kernel is called on every process: its numbers, without the addresses and the device of this one."""
    text = re.sub(r" at 0x[0-9a-f]+|, device='[^']*'", "", repr(kernel))
    return (
        text
        if len(text) <= 160
        else f"{text[:120]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    )
