"""Values of implicit Q-learning (IQL, Kostrikov et al. 2021), which four methods share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.networks import StateValue, TwinCritic
from wgflow_rl.data.batch import Batch


class ImplicitQ(Agent):
    """Base of methods whose values ask for actions of the data only; `cfg.expectile` is tau."""

    value: StateValue

    def add_values(self, generator: torch.Generator) -> None:
        """Declare twin critics, their target network and a state value V."""
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.value = StateValue(self.obs_dim, self.cfg.hidden, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """L_Q + L_V (IQL Eq. 6 and 5).

        L_Q = (Q(s_t, a_{t:t+h}) - R_h - gamma^h V(s_{t+h}))^2; L_V makes V the tau-expectile of min Q_target(s, a).
        """
        with torch.no_grad():
            next_value = self.value(batch.next_obs)
        critic_loss, log = losses.td_loss(self.critic, batch, next_value)
        error = self.advantage(batch)
        value_loss = (expectile_loss(error, self.cfg.expectile) * batch.complete).mean()
        log |= {"critic_loss": critic_loss.detach(), "value_loss": value_loss.detach()}
        return critic_loss + value_loss, log | {"advantage": error.detach().mean()}

    def advantage(self, batch: Batch) -> Tensor:
        """A = min Q_target(s, a) - V(s) of the data's chunks, [B]. Gradient to V alone."""
        with torch.no_grad():
            q = self.target_critic(batch.obs, batch.chunk).amin(0)[:, 0]
        return q - self.value(batch.obs)


def expectile_loss(error: Tensor, tau: float) -> Tensor:
    """|tau - 1(u < 0)| u^2, elementwise: least at the tau-expectile (IQL Eq. 5)."""
    return torch.where(error < 0, 1 - tau, tau) * error.square()
