"""Implicit flow Q-learning (IFQL, Park et al. 2025), IDQL with a flow: IQL's values, the best of N of a clone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import (
    StateFunction,
    TwinCritic,
    VectorField,
    slow_copy,
    standardiser,
)
from wgflow_rl.agents.protocol import AgentConfig, at_least, fraction
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class IFQLConfig(AgentConfig):
    """Settings of IFQL (Park et al. 2025), chunks of one action."""

    chunk: int = 1
    expectile: float = 0.9  # tau (default of Park et al. 2025)
    act_samples: int = 32  # N (default of Park et al. 2025, who set it per task)
    act_temperature: float = 0.0  # 0: the best (paper). Else one is drawn from softmax(Q / this)
    flow_steps: int = 10  # Euler steps from noise to chunk

    def check(self) -> None:
        super().check()
        fraction(expectile=self.expectile)
        at_least(0, act_temperature=self.act_temperature)
        at_least(1, act_samples=self.act_samples, flow_steps=self.flow_steps)


class Noise(NamedTuple):
    """All the randomness of one update."""

    flow: Tensor  # [B, 1, C] normal
    time: Tensor  # [B, 1, 1] uniform


class IFQL:
    """A flow of the behaviour, twin critics, their slow copy, a state value. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: IFQLConfig,
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
        self.flow = VectorField(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(device)
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.value = StateFunction(obs_dim, 1, cfg.hidden, generator=generator, layer_norm=True).to(
            device
        )
        self.target_critic = slow_copy(self.critic)
        self.optimiser = torch.optim.Adam(
            [*self.flow.parameters(), *self.critic.parameters(), *self.value.parameters()],
            lr=cfg.lr,
            fused=True,
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        where = {"generator": generator, "device": self.device}
        return Noise(
            ops.normal(batch, 1, self.chunk_dim, **where), ops.uniform(batch, 1, 1, **where)
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic, value and flow, the same in both phases; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        value_loss, advantage = self.value_loss(batch, obs)
        critic_loss = self.critic_loss(batch, obs, next_obs)
        actor_loss = self.actor_loss(batch, obs, noise)
        log = {
            "critic_loss": critic_loss.detach(),
            "value_loss": value_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "advantage": advantage.mean(),
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

    def actor_loss(self, batch: Batch, obs: Tensor, noise: Noise) -> Tensor:
        """Flow matching of the data's chunks: no value in it."""
        data = batch.actions.flatten(1)[:, None]
        error = ops.flow_matching(self.flow, obs, data, noise.flow, noise.time)
        return (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    # ---- acting -------------------------------------------------------------------------------------------------

    def propose(self, obs: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n chunks of the behaviour per state, [B, n, C]."""
        noise = ops.normal(obs.shape[0], n, self.chunk_dim, generator=generator, device=self.device)
        return ops.euler(self.flow, obs, noise, self.cfg.flow_steps)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one of `act_samples` by min Q_target."""
        obs = self.normalise(obs.to(self.device))
        chunks = self.propose(obs, self.cfg.act_samples, generator).clamp(-1, 1)
        score, temperature = self.target_critic(obs, chunks).amin(0), self.cfg.act_temperature
        chunk = ops.choose(chunks, score, temperature=temperature, generator=generator)
        return chunk.reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        chunks = self.propose(obs, max(diagnostics.SAMPLES, self.cfg.act_samples), generator)
        score = self.target_critic(obs, chunks[:, : self.cfg.act_samples].clamp(-1, 1)).amin(0)
        log = diagnostics.against_data(chunks[:, : diagnostics.SAMPLES], batch)
        return log | diagnostics.executed(score, self.cfg.act_temperature)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "flow": self.flow,
            "critic": self.critic,
            "value": self.value,
            "target_critic": self.target_critic,
        }
