"""One update of an agent: its loss, one step of its optimiser, its slow copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wgflow_rl import ops
from wgflow_rl.batch import Batch
from wgflow_rl.protocol import Agent


def update(agent: Agent, batch: Batch, noise: Any, *, online: bool) -> dict[str, Tensor]:
    """One gradient step, a function of weights, batch and noise; scalars to log."""
    loss, log = agent.loss(batch, noise, online=online)
    ops.descend(agent.optimiser, loss)
    agent.settle()
    return log
