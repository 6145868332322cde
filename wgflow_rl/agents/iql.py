"""Implicit Q-learning (Kostrikov et al. 2021): values by expectiles, the policy by advantage-weighted regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import DeterministicPolicy, StateValue, TwinCritic
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import at_least, fraction


@dataclass(frozen=True)
class IQLConfig(AgentConfig):
    """Settings of IQL (Kostrikov et al. 2021), chunks of one action."""

    chunk: int = 1
    expectile: float = 0.9  # tau (default of Park et al. 2025)
    alpha: float = 10.0  # inverse temperature of the weights (default of Park et al. 2025, who set it per task)

    def check(self) -> None:
        super().check()
        fraction(expectile=self.expectile)
        at_least(0, alpha=self.alpha)


class IQL(Agent):
    """Gaussian policy of fixed width, of which the mean is executed; twin critics and a state value."""

    cfg: IQLConfig

    def setup(self, generator: torch.Generator) -> None:
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.value = StateValue(self.obs_dim, self.cfg.hidden, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)
        self.latent = None

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs)

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """L_Q + L_V of implicit Q-learning (IQL Eq. 6 and 5)."""
        return losses.implicit_q_loss(
            self.critic, self.target_critic, self.value, batch, tau=self.cfg.expectile
        )

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """exp(alpha A) |a - mu(s)|^2 / 2: advantage-weighted -log N(a; mu(s), 1) (IQL Eq. 7), weights capped at 100."""
        with torch.no_grad():
            advantage = losses.advantage(self.value, self.target_critic, batch)
        weight = losses.advantage_weight(advantage, self.cfg.alpha) * batch.complete
        error = (self.policy(batch.obs) - batch.chunk).square() / 2
        loss = (weight[:, None, None] * error * batch.mask).mean()
        return loss, {"weight": weight.mean()}
