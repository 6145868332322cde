"""ReBRAC (Tarasov et al. 2023): TD3 with a behaviour penalty of its own in the actor and in the critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import (
    Counter,
    StateFunction,
    TwinCritic,
    frozen,
    slow_copy,
    standardiser,
)
from wgflow_rl.agents.protocol import AgentConfig, at_least
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class ReBRACConfig(AgentConfig):
    """Settings of ReBRAC (Tarasov et al. 2023), chunks of one action."""

    chunk: int = 1
    actor_penalty: float = 0.1  # beta_1: our choice (Park et al. 2025 set it per task)
    critic_penalty: float = 0.01  # beta_2: likewise
    policy_delay: int = 2  # critic updates per update of policy and target networks (TD3)
    target_noise: float = 0.2  # smoothing of a' (TD3)
    noise_clip: float = 0.5

    def check(self) -> None:
        super().check()
        at_least(1, policy_delay=self.policy_delay)
        at_least(
            0,
            actor_penalty=self.actor_penalty,
            critic_penalty=self.critic_penalty,
            target_noise=self.target_noise,
            noise_clip=self.noise_clip,
        )


class Noise(NamedTuple):
    """All the randomness of one update."""

    target: Tensor  # [B, 1, C] normal


class ReBRAC:
    """A deterministic policy in (-1, 1), twin critics, slow copies of both. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: ReBRACConfig,
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
        self.target_policy = slow_copy(self.policy)
        self.target_critic = slow_copy(self.critic)
        self.updates = Counter().to(device)
        self.optimiser = torch.optim.Adam(
            [*self.policy.parameters(), *self.critic.parameters()], lr=cfg.lr, fused=True
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        return Noise(ops.normal(batch, 1, self.chunk_dim, generator=generator, device=self.device))

    @property
    def turn(self) -> bool:
        """Whether policy and slow copies move in this update."""
        return int(self.updates.count) % self.cfg.policy_delay == 0

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic, every `policy_delay`-th time also the policy; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        loss, log = self.critic_loss(batch, obs, next_obs, noise)
        log["critic_loss"] = loss.detach()
        actor_loss, actor_log = self.actor_loss(batch, obs)
        if self.turn:
            loss = loss + actor_loss
        return loss, {**log, "actor_loss": actor_loss.detach(), **actor_log}

    def settle(self) -> None:
        """After the optimiser's step: slow copies follow, and the update is counted."""
        if self.turn:
            ops.polyak_(self.target_critic, self.critic, self.cfg.target_rate)
            ops.polyak_(self.target_policy, self.policy, self.cfg.target_rate)
        self.updates.tick()

    def critic_loss(
        self, batch: Batch, obs: Tensor, next_obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(Q(s, a) - R_h - gamma^h [min Q_target(s', a') - beta_2 |a' - a'_data|^2])^2 (ReBRAC Sec. 3; TD3's a').

        The penalty is known where the data hold the chunk that follows; elsewhere it is left out.
        """
        cfg = self.cfg
        with torch.no_grad():
            smooth = (cfg.target_noise * noise.target).clamp(-cfg.noise_clip, cfg.noise_clip)
            chunk = (self.target_policy(next_obs).tanh() + smooth).clamp(-1, 1)
            away = (chunk - batch.next_actions.flatten(1)[:, None]).square()
            penalty = (away * ops.coordinates(batch.next_valid, self.chunk_dim)).sum(-1)[:, 0]
            value = self.target_critic(next_obs, chunk).amin(0)[:, 0] - cfg.critic_penalty * penalty
            target = ops.td_target(batch.returns, batch.discount, value)
        loss, log = ops.critic_loss(self.critic, batch, obs, target)
        return loss, log | {"penalty": penalty.mean()}

    def actor_loss(self, batch: Batch, obs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-min Q(s, pi(s)) / mean|Q| + beta_1 |pi(s) - a|^2 (ReBRAC Sec. 3). No gradient to the critic."""
        chunk = self.policy(obs).tanh()
        q = frozen(self.critic)(obs, chunk).amin(0)
        away = (chunk - batch.actions.flatten(1)[:, None]).square() * ops.coordinates(
            batch.valid, self.chunk_dim
        )
        bc = away.sum(-1).mean()
        log = {"bc_loss": bc.detach(), "q_policy": q.detach().mean()}
        return self.cfg.actor_penalty * bc - ops.value_scale(q) * q.mean(), log

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]."""
        obs = self.normalise(obs.to(self.device))
        return self.policy(obs).tanh().reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        chunk = self.policy(obs).tanh()
        log = diagnostics.against_data(diagnostics.repeat(chunk), batch)
        return log | diagnostics.executed(self.critic.mean(obs, chunk))

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "critic": self.critic,
            "target_policy": self.target_policy,
            "target_critic": self.target_critic,
            "updates": self.updates,
        }
