"""Flow Q-learning (Park et al. 2025; with chunks QC-FQL, Li et al. 2025): a one-step student of a flow, and of Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import Policy, TwinCritic, VectorField, frozen
from wgflow_rl.agents.sampling import euler, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative


@dataclass(frozen=True)
class FQLConfig(AgentConfig):
    """Settings of QC-FQL (Li et al. 2025) on cube-triple; FQL (Park et al. 2025) has chunk 1."""

    alpha: NonNegative = 100.0  # weight of the distillation, set per task: `presets.py`
    flow_steps: Count = 10  # Euler steps of the teacher (Park et al. 2025)


class FQL(Agent):
    """Flow of the behaviour and a one-step policy distilled from it; the critic is `Agent.critic_loss`."""

    cfg: FQLConfig

    def setup(self, generator: torch.Generator) -> None:
        C = self.chunk_dim
        self.policy = Policy(*self.sizes, generator=generator)
        self.flow = VectorField(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=self.cfg.target_rate)
        self.noise = {
            "flow": (normal, 1, C),  # x_0 of flow matching
            "time": (uniform, 1, 1),
            "student": (normal, 1, C),  # z that student and teacher share
            "target": (normal, 1, C),  # z of a'
        }

    def sample(self, obs: Tensor, z: Tensor) -> Tensor:
        return self.policy(obs, z)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L = L_flow + alpha |mu(s, z) - flow(s, z)|^2 - mean Q(s, clip mu(s, z)) (FQL, Algorithm 1).

        The flow learns from the data alone, the student from teacher and critic, the critic from neither. The student
        is not clipped in the distillation, so a saturated coordinate is pulled back by its teacher, not by Q.
        """
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        flow = (error * batch.mask).mean()
        with torch.no_grad():
            teacher = euler(self.flow, batch.obs, noise.student, self.cfg.flow_steps).clamp(-1, 1)
        student = self.policy(batch.obs, noise.student)
        distill = (student - teacher).square().mean()
        q = frozen(self.critic)(batch.obs, student.clamp(-1, 1)).mean()
        log = {"bc_loss": flow.detach(), "distill": distill.detach(), "q_policy": q.detach()}
        return flow + self.cfg.alpha * distill - q, log
