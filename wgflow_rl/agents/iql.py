"""Implicit Q-learning (Kostrikov et al. 2021): values by expectiles, the policy by advantage-weighted regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.implicit_q import ImplicitQ
from wgflow_rl.agents.networks import DeterministicPolicy
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import NonNegative, Share


@dataclass(frozen=True)
class IQLConfig(AgentConfig):
    """Settings of IQL (Kostrikov et al. 2021), chunks of one action."""

    chunk: int = 1
    expectile: Share = 0.9  # tau (default of Park et al. 2025)
    # inverse temperature of the weights (default of Park et al. 2025, who set it per task)
    alpha: NonNegative = 10.0


class IQL(ImplicitQ):
    """Gaussian policy of fixed width, of which the mean is executed; the values are those of `ImplicitQ`."""

    cfg: IQLConfig

    def setup(self, generator: torch.Generator) -> None:
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.add_values(generator)
        self.latent = None

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """exp(alpha A) |a - mu(s)|^2 / 2: advantage-weighted -log N(a; mu(s), 1) (IQL Eq. 7), weights capped at 100."""
        with torch.no_grad():
            advantage = self.advantage(batch)
        weight = losses.advantage_weight(advantage, self.cfg.alpha) * batch.complete
        error = (self.policy(batch.obs) - batch.chunk).square() / 2
        loss = (weight[:, None, None] * error * batch.mask).mean()
        return loss, {"weight": weight.mean()}
