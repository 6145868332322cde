"""An update as one CUDA graph: hundreds of small operations are launched as one.

Written for graphics cards and tested without one: on a CPU nothing is recorded, and the same function is called on the
same buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

import wgflow as wg
from wgflow_rl.data.batch import Batch
from wgflow_rl.training.updates import Outcome, Update

WARM_UP = 3  # updates of a phase before it is recorded: they allocate and choose kernels, and they count as updates


class Captured:
    """An update that is recorded once for each phase, then replayed. It takes and gives what `update` does.

    Inputs are copied into buffers that stay. What is given back holds until the next call, and `finite` for good.
    Agents are restored before the first call, not after.
    """

    def __init__(self, update: Update):
        self.update = update
        self._phases: dict[bool, _Phase] = {}

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        return self.update.optimiser

    def __call__(self, batch: Batch, noise: Any, *, online: bool) -> Outcome:
        if not self._phases:
            keep_rate_on_device_(self.optimiser, batch.obs.device)
        if online not in self._phases:
            self._phases[online] = _Phase(self.update, batch, noise, online)
        outcome = self._phases[online](batch, noise)
        return Outcome(dict(outcome.log), outcome.names, outcome.finite.clone())


class _Phase:
    """One recording: its buffers, and how many updates it has made."""

    def __init__(self, update: Update, batch: Batch, noise: Any, online: bool):
        self.update, self.online = update, online
        self.inputs = tree_map(torch.empty_like, (batch, noise))
        self.made = 0
        self.replay: Callable[[], Outcome] | None = None

    def __call__(self, batch: Batch, noise: Any) -> Outcome:
        torch._foreach_copy_(tree_leaves(self.inputs), tree_leaves((batch, noise)))
        device = batch.obs.device
        if self.made < WARM_UP:
            self.made += 1
            return aside(self.run, device)
        if self.replay is None:
            self.update.optimiser.zero_grad()  # gradients are to live in the graph's own memory
            self.replay = recorded(self.run, device)
        return self.replay()

    def run(self) -> Outcome:
        batch, noise = self.inputs
        with wg.capturable():  # the same operations before the recording as in it
            return self.update(batch, noise, online=self.online)


def aside(function: Callable[[], Outcome], device: torch.device) -> Outcome:
    """Call it on another stream than the current one, as what is to be recorded must have been before."""
    if device.type != "cuda":
        return function()
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        outcome = function()
    current.wait_stream(stream)
    return outcome


def recorded(function: Callable[[], Outcome], device: torch.device) -> Callable[[], Outcome]:
    """The operations of one call, which are not carried out yet, as one that carries them out."""
    if device.type != "cuda":
        return function
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(
            graph, stream=torch.cuda.Stream(device)
        ):  # torch's own is on the first GPU
            outcome = function()
    except RuntimeError as error:
        error.add_note(
            "The update could not be recorded as a CUDA graph. Without one: --no-graph, also with --resume."
        )
        raise

    def replay() -> Outcome:
        graph.replay()
        return outcome

    return replay


def keep_rate_on_device_(optimiser: torch.optim.Optimizer, device: torch.device) -> None:
    """The learning rate as a tensor: a number would be recorded as it is now, and `ops.anneal_` would be in vain."""
    dtype = (
        torch.float32 if device.type == "cuda" else torch.float64
    )  # what the fused Adam reads; exact on a CPU
    for group in optimiser.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=dtype, device=device)
        group["capturable"] = True
