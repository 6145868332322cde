"""ReBRAC (Tarasov et al. 2023): TD3 with a behaviour penalty of its own in the actor and in the critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import DeterministicPolicy, TwinCritic, frozen
from wgflow_rl.agents.sampling import normal
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative


@dataclass(frozen=True)
class ReBRACConfig(AgentConfig):
    """Settings of ReBRAC (Tarasov et al. 2023), chunks of one action."""

    chunk: int = 1
    actor_penalty: NonNegative = 0.1  # beta_1: our choice (Park et al. 2025 set it per task)
    critic_penalty: NonNegative = 0.01  # beta_2: likewise
    policy_delay: Count = 2  # critic updates per update of policy and target networks (TD3)
    target_noise: NonNegative = 0.2  # smoothing of a' (TD3)
    noise_clip: NonNegative = 0.5


class ReBRAC(Agent):
    """Deterministic policy tanh f(s), twin critics, target networks of both; the policy moves less often (TD3)."""

    cfg: ReBRACConfig
    updates = 0  # so far; not a buffer, which a GPU would have to be waited for to read

    def setup(self, generator: torch.Generator) -> None:
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_policy = self.target_network(self.policy, rate=self.cfg.target_rate)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)
        self.latent = None
        self.noise = {"target": (normal, 1, self.chunk_dim)}  # smoothing of a'

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs).tanh()

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """(Q(s, a) - R_h - gamma^h [min Q_target(s', a') - beta_2 |a' - a'_data|^2])^2 (ReBRAC Sec. 3; TD3's a').

        The penalty is known where the data hold the chunk that follows; elsewhere it is left out.
        """
        cfg = self.cfg
        with torch.no_grad():
            smooth = (cfg.target_noise * noise.target).clamp(-cfg.noise_clip, cfg.noise_clip)
            chunk = (self.target_policy(batch.next_obs).tanh() + smooth).clamp(-1, 1)
            away = (chunk - batch.next_chunk).square() * batch.next_mask
            penalty = away.sum(-1)[:, 0]
            q = self.target_critic(batch.next_obs, chunk).amin(0)[:, 0]
        loss, log = losses.td_loss(self.critic, batch, q - cfg.critic_penalty * penalty)
        return loss, log | {"penalty": penalty.mean()}

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """beta_1 |pi(s) - a|^2 - min Q(s, pi(s)) / mean|Q| (ReBRAC Sec. 3). No gradient to the critic."""
        chunk = self.policy(batch.obs).tanh()
        q = frozen(self.critic)(batch.obs, chunk).amin(0)
        bc = ((chunk - batch.chunk).square() * batch.mask).sum(-1).mean()
        loss = self.cfg.actor_penalty * bc - losses.value_scale(q) * q.mean()
        log = {"bc_loss": bc.detach(), "q_policy": q.detach().mean()}
        return loss if self.moves_policy() else loss.detach(), log

    def moves_policy(self) -> bool:
        """Return True in every `policy_delay`-th update, in which policy and target networks move."""
        return self.updates % self.cfg.policy_delay == 0

    def update_targets(self) -> None:
        """Move the target networks with the policy, and count the update."""
        if self.moves_policy():
            super().update_targets()
        self.updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.updates, device=self.device)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)
