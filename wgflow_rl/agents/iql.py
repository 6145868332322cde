"""Implicit Q-learning (Kostrikov et al. 2021): values by expectiles, the policy by advantage-weighted regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import StateFunction, TwinCritic, slow_copy, standardiser
from wgflow_rl.agents.protocol import AgentConfig, at_least, fraction
from wgflow_rl.data.batch import Batch


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


class Noise(NamedTuple):
    """An update is not random."""


class IQL:
    """A Gaussian policy of fixed width, twin critics, their slow copy, a state value. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: IQLConfig,
        *,
        obs_dim: int,
        action_dim: int,
        seed: int = 0,
        obs_mean: Tensor | None = None,
        obs_std: Tensor | None = None,
        device: str | torch.device = "cpu",
    ):
        self.cfg = cfg
        self.device = torch.device(device)
        self.chunk_dim = cfg.chunk * action_dim
        generator = torch.Generator().manual_seed(seed)
        self.policy = StateFunction(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.value = StateFunction(obs_dim, 1, cfg.hidden, generator=generator, layer_norm=True).to(
            device
        )
        self.target_critic = slow_copy(self.critic)
        self.optimiser = torch.optim.Adam(
            [*self.policy.parameters(), *self.critic.parameters(), *self.value.parameters()],
            lr=cfg.lr,
            fused=True,
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        return Noise()

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic, value and policy, the same in both phases; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        value_loss, advantage = self.value_loss(batch, obs)
        critic_loss = self.critic_loss(batch, obs, next_obs)
        actor_loss, weight = self.actor_loss(batch, obs, advantage)
        log = {
            "critic_loss": critic_loss.detach(),
            "value_loss": value_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "advantage": advantage.mean(),
            "weight": weight.mean(),
        }
        return critic_loss + value_loss + actor_loss, log

    def settle(self) -> None:
        """After the optimiser's step: slow copies follow."""
        ops.polyak_(self.target_critic, self.critic, self.cfg.target_rate)

    def value_loss(self, batch: Batch, obs: Tensor) -> tuple[Tensor, Tensor]:
        """V is the expectile of min Q_target over the data's actions (IQL Eq. 5); and the advantage [B]."""
        return ops.implicit_value_loss(
            self.value, self.target_critic, batch, obs, self.cfg.expectile
        )

    def critic_loss(self, batch: Batch, obs: Tensor, next_obs: Tensor) -> Tensor:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h V(s_{t+h}))^2: only actions of the data are asked for (IQL Eq. 6)."""
        return ops.implicit_critic_loss(self.critic, self.value, batch, obs, next_obs)

    def actor_loss(self, batch: Batch, obs: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """exp(alpha A) |a - mu(s)|^2 / 2: advantage-weighted -log N(a; mu(s), 1) (Eq. 7), weights capped at 100."""
        weight = ops.advantage_weight(advantage, self.cfg.alpha) * batch.complete
        error = (self.policy(obs) - batch.actions.flatten(1)[:, None]).square() / 2
        mask = ops.coordinates(batch.valid, self.chunk_dim)
        return (weight[:, None, None] * error * mask).mean(), weight

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: the mean of the policy."""
        obs = self.normalise(obs.to(self.device))
        return self.policy(obs).clamp(-1, 1).reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        chunk = self.policy(obs)
        log = diagnostics.against_data(diagnostics.repeat(chunk), batch)
        return log | diagnostics.executed(self.critic.mean(obs, chunk.clamp(-1, 1)))

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "critic": self.critic,
            "value": self.value,
            "target_critic": self.target_critic,
        }
