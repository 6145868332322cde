"""FAWAC (Park et al. 2025): flow matching of the data, each action weighted by its exponentiated advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import TwinCritic, VectorField
from wgflow_rl.agents.sampling import euler, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative


@dataclass(frozen=True)
class FAWACConfig(AgentConfig):
    """Settings of FAWAC (Park et al. 2025), chunks of one action."""

    chunk: int = 1
    alpha: NonNegative = 0.8  # inverse temperature: our choice (Park et al. 2025 set it per task)
    flow_steps: Count = 10  # Euler steps from noise to action


class FAWAC(Agent):
    """Flow policy by advantage-weighted flow matching; the critic is `Agent.critic_loss`."""

    cfg: FAWACConfig
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        C = self.chunk_dim
        self.flow = VectorField(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)
        self.noise = {
            "flow": (normal, 1, C),  # x_0 of flow matching
            "time": (uniform, 1, 1),
            "policy": (normal, 1, C),  # x_0 of the policy's own action, for the advantage
            "target": (normal, 1, C),  # x_0 of a'
        }

    def sample(self, obs: Tensor, x0: Tensor) -> Tensor:
        return euler(self.flow, obs, x0, self.cfg.flow_steps)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """exp(alpha A) L_flow with A = Q(s, a) - Q(s, flow(s, z)): advantage-weighted flow matching.

        AWAC (Nair et al. 2020) with a flow for its Gaussian. The state value is one draw of the policy; weights are
        capped at 100. No gradient of Q reaches the flow.
        """
        with torch.no_grad():
            own = self.sample(batch.obs, noise.policy).clamp(-1, 1)
            q = self.q(batch.obs, torch.cat([batch.chunk, own], 1))  # [B, 2]
            advantage = q[:, 0] - q[:, 1]
            weight = losses.advantage_weight(advantage, self.cfg.alpha) * batch.complete
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        loss = (weight[:, None, None] * error * batch.mask).mean()
        return loss, {"weight": weight.mean(), "q_policy": q[:, 1].mean()}
