"""One update of an agent: its loss, one step of its optimiser, its slow copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from wgflow_rl.agents.agent import Agent
from wgflow_rl.data.batch import Batch
from wgflow_rl.training.finite import are_finite, gradients, losses


def update(agent: Agent, batch: Batch, noise: Any, *, online: bool) -> dict[str, Tensor]:
    """One gradient step, a function of weights, batch and noise; scalars to log."""
    loss, log = agent.loss(batch, noise, online=online)
    agent.optimiser.zero_grad()
    loss.backward()
    agent.optimiser.step()
    agent.update_targets()
    return log


def counts_updates(agent: Agent) -> bool:
    """Whether an agent counts its updates, to do one thing only now and then: they are not all the same operations."""
    return hasattr(agent, "updates")


class Outcome(NamedTuple):
    """Scalars to log, and which of the losses and gradients were finite; with S seeds at once S leads in all."""

    log: dict[str, Tensor]  # []
    names: tuple[str, ...]  # n of them
    finite: Tensor  # [n] bool

    def row(self, s: int) -> Outcome:
        """That of seed s of several."""
        return Outcome(
            {name: value[s] for name, value in self.log.items()}, self.names, self.finite[s]
        )


class Work(NamedTuple):
    """What one update is a function of, beside the weights."""

    batch: Batch
    noise: Any
    online: bool


def together(works: Sequence[Work]) -> Work:
    """The work of S agents as that of their stack, S in front of every tensor."""
    tensors = [(work.batch, work.noise) for work in works]
    batch, noise = tree_map(lambda *each: torch.stack(each), *tensors)
    return Work(batch, noise, works[0].online)


class Update(Protocol):
    """What a trainer calls once a step: for one agent or several, plainly or as a captured graph."""

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    def __call__(self, batch: Batch, noise: Any, *, online: bool) -> Outcome: ...


class Plain:
    """The update of one agent, its operations called one by one."""

    def __init__(self, agent: Agent):
        self.agent = agent

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        return self.agent.optimiser

    def __call__(self, batch: Batch, noise: Any, *, online: bool) -> Outcome:
        log = update(self.agent, batch, noise, online=online)
        watched = losses(log) | gradients(self.agent)
        return Outcome(log, tuple(watched), are_finite(watched.values()))
