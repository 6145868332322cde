"""FBRAC (Park et al. 2025): a flow policy that follows Q through all of its steps, beside flow matching of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import TwinCritic, VectorField, frozen
from wgflow_rl.agents.sampling import euler, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative


@dataclass(frozen=True)
class FBRACConfig(AgentConfig):
    """Settings of FBRAC (Park et al. 2025), chunks of one action."""

    chunk: int = 1
    # weight of flow matching: our choice (Park et al. 2025 set it per task)
    alpha: NonNegative = 0.1
    flow_steps: Count = 10  # Euler steps, all of them differentiated


class FBRAC(Agent):
    """Flow policy trained by flow matching and by Q; the critic is `Agent.critic_loss`."""

    cfg: FBRACConfig
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        C = self.chunk_dim
        self.flow = VectorField(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)
        self.noise = {
            "flow": (normal, 1, C),  # x_0 of flow matching
            "time": (uniform, 1, 1),
            "policy": (normal, 1, C),  # x_0 of the chunk that Q judges
            "target": (normal, 1, C),  # x_0 of a'
        }

    def sample(self, obs: Tensor, x0: Tensor) -> Tensor:
        return euler(self.flow, obs, x0, self.cfg.flow_steps)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """-Q(s, clip flow(s, z)) / mean|Q| + alpha L_flow: Q's gradient passes back through every Euler step.

        A saturated coordinate has no gradient of Q; flow matching, which is not clipped, still moves it.
        """
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        flow = (error * batch.mask).mean()
        chunk = self.sample(batch.obs, noise.policy).clamp(-1, 1)
        q = frozen(self.critic)(batch.obs, chunk).mean(0)
        log = {"bc_loss": flow.detach(), "q_policy": q.detach().mean()}
        return self.cfg.alpha * flow - losses.value_scale(q) * q.mean(), log
