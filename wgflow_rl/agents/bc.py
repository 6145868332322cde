"""Behaviour cloning: the mean of a Gaussian of fixed width, by least squares. The baseline without values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import DeterministicPolicy
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class BCConfig(AgentConfig):
    """Settings of behaviour cloning, chunks of one action."""

    chunk: int = 1


class BC(Agent):
    """Deterministic policy, without a critic."""

    cfg: BCConfig

    def setup(self, generator: torch.Generator) -> None:
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.latent = None

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs)

    def loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """The actor's loss alone."""
        batch = batch._replace(obs=self.normalise(batch.obs))
        loss, log = self.actor_loss(batch, noise, online=online)
        return loss, {"actor_loss": loss.detach(), **log}

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """|a - mu(s)|^2, which is -log N(a; mu(s), 1) up to constants: two modes are answered by their mean."""
        error = (self.policy(batch.obs) - batch.chunk).square()
        return (error * batch.mask).mean(), {}

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> Log:
        """Compare with the data; there are no values to report."""
        return diagnostics.compare_with_data(self.policy(self.normalise(batch.obs)), batch)
