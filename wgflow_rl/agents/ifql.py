"""Implicit flow Q-learning (IFQL, Park et al. 2025), IDQL with a flow: IQL's values, the best of N of a clone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.implicit_q import ImplicitQ
from wgflow_rl.agents.networks import VectorField
from wgflow_rl.agents.sampling import euler, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative, Share


@dataclass(frozen=True)
class IFQLConfig(AgentConfig):
    """Settings of IFQL (Park et al. 2025), chunks of one action."""

    chunk: int = 1
    expectile: Share = 0.9  # tau (default of Park et al. 2025)
    act_samples: Count = 32  # N (default of Park et al. 2025, who set it per task)
    act_temperature: NonNegative = 0.0  # 0: the best (paper); else a draw from softmax(Q / this)
    flow_steps: Count = 10  # Euler steps from noise to chunk


class IFQL(ImplicitQ):
    """Flow of the behaviour and the values of IQL; the best of N by min Q is executed."""

    cfg: IFQLConfig
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        self.flow = VectorField(*self.sizes, generator=generator)
        self.add_values(generator)
        self.noise = {"flow": (normal, 1, self.chunk_dim), "time": (uniform, 1, 1)}

    def sample(self, obs: Tensor, x0: Tensor) -> Tensor:
        return euler(self.flow, obs, x0, self.cfg.flow_steps)

    def q(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """min Q of the online critics, as in the code of Park et al., [B, n]. (IDQL: of the target critics.)"""
        return self.critic(obs, chunks).amin(0)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """Flow matching of the data's chunks: no value in it."""
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        return (error * batch.mask).mean(), {}
