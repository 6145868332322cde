"""One update of an agent: its loss, one optimiser step, its target networks; and the check that it stays finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wgflow_rl.agents.agent import Agent
from wgflow_rl.data.batch import Batch
from wgflow_rl.training.snapshot import snapshot
from wgflow_rl.utils.cli import UserError


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight stopped being finite."""


def update(agent: Agent, batch: Batch, noise: Any, *, online: bool) -> dict[str, Tensor]:
    """One gradient step, a function of weights, batch and noise. Returns scalars to log."""
    loss, log = agent.loss(batch, noise, online=online)
    agent.optimiser.zero_grad()
    loss.backward()
    if agent.cfg.max_grad_norm:
        nn.utils.clip_grad_norm_(agent.parameters(), agent.cfg.max_grad_norm)
    agent.optimiser.step()
    agent.update_targets()
    return log


def checked_update(
    agent: Agent, batch: Batch, noise: Any, *, online: bool, at: str
) -> dict[str, Tensor]:
    """`update`, with everything that goes in and comes out checked; `at` is the moment, as "step 7 (offline)".

    Raises:
        TrainingDiverged: The message names the first tensor of the batch, loss or gradient that is not finite.
    """
    check_finite({f"batch.{name}": t for name, t in batch._asdict().items()}, at=at)
    try:
        log = update(agent, batch, noise, online=online)
    except ValueError as error:
        raise_as_divergence(error, agent, of="update", at=at)
        raise
    check_finite({k: v for k, v in log.items() if k.endswith("_loss")} | gradients(agent), at=at)
    return log


def check_finite(tensors: Mapping[str, Tensor], *, at: str) -> None:
    """Raises: TrainingDiverged naming the first tensor that is not finite."""
    finite = all_finite(tensors.values())
    if finite.all():
        return
    name = list(tensors)[int(finite.int().argmin())]
    remedy = (
        "see where it comes from" if name.startswith("batch.") else "a new run with a smaller --lr"
    )
    raise TrainingDiverged(
        f"{name} is not finite at {at}. Checkpoints are from before it; what usually helps: {remedy}."
    )


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """For each of n tensors, whether all its entries are finite: [n] bool, on their device."""
    # The extremes are finite iff all entries are; twenty times faster than isfinite, and exact, unlike a sum.
    extremes = torch.stack([extreme for t in tensors for extreme in t.aminmax()])
    return extremes.isfinite().view(-1, 2).all(1)


def raise_as_divergence(error: ValueError, agent: Agent, *, of: str, at: str) -> None:
    """Raise TrainingDiverged if a field refused its input because of the weights; return if not.

    Fields refuse NaN with a ValueError. With a finite batch, NaN comes from weights that are not finite, or so large
    that the samples made from them are not.
    """
    check_finite(snapshot(agent), at=at)
    if "NaN" in str(error):
        raise TrainingDiverged(
            f"a field of the {of} is not finite at {at}. Checkpoints are from before it; what usually helps: a new "
            "run with a smaller --lr."
        ) from error


def gradients(agent: Agent) -> dict[str, Tensor]:
    """Gradients of the last update, named 'gradient of policy.net.first.weight'."""
    return {
        f"gradient of {name}": weight.grad
        for name, weight in agent.named_parameters()
        if weight.grad is not None
    }
