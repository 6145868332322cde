"""Best-of-N flow policy (BFN; with chunks QC-BFN, Li et al. 2025): clone by flow matching, choose by value."""

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
class BFNConfig(AgentConfig):
    """Settings of QC-BFN (Li et al. 2025); BFN has chunk 1 and N = 4."""

    target_samples: Count = 32  # N, a' is the best of these by the critic (Li et al. 2025)
    act_samples: Count = 32  # N again: one number for both (Li et al. 2025)
    act_temperature: NonNegative = 0.0  # 0: the best (paper); else a draw from softmax(Q / this)
    flow_steps: Count = 10  # Euler steps from noise to chunk


class BFN(Agent):
    """Flow of the behaviour; the best of its N samples is executed, and is the a' of `Agent.critic_loss`."""

    cfg: BFNConfig
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.flow = VectorField(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        self.noise = {
            "flow": (normal, 1, C),  # x_0 of flow matching
            "time": (uniform, 1, 1),
            "target": (normal, cfg.target_samples, C),  # x_0 of a'
        }

    def sample(self, obs: Tensor, x0: Tensor) -> Tensor:
        return euler(self.flow, obs, x0, self.cfg.flow_steps)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """Flow matching of the data's chunks, without steps after the end of a trajectory and without values."""
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        return (error * batch.mask).mean(), {}
