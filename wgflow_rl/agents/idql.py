"""Implicit diffusion Q-learning (Hansen-Estruch et al. 2023): IQL's values, a diffusion of the data, the best of N."""

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
from wgflow_rl.agents.sampling import ancestral, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative, Share


@dataclass(frozen=True)
class IDQLConfig(AgentConfig):
    """Settings of IDQL (Hansen-Estruch et al. 2023), chunks of one action."""

    chunk: int = 1
    expectile: Share = 0.9  # tau: our choice, as IQL
    act_samples: Count = 32  # N: our choice, as IFQL
    act_temperature: NonNegative = 0.0  # 0: the best (paper); else a draw from softmax(Q / this)
    diffusion_steps: Count = 10  # our choice, as many as the flows take; 5 in the IDQL paper


class IDQL(ImplicitQ):
    """Diffusion of the behaviour and the values of IQL; the best of N by min Q_target is executed."""

    cfg: IDQLConfig
    acts = "diffusion"

    def setup(self, generator: torch.Generator) -> None:
        self.diffusion = VectorField(*self.sizes, generator=generator)
        self.add_values(generator)
        self.latent = (self.cfg.diffusion_steps, self.chunk_dim)
        self.noise = {"diffusion": (normal, 1, self.chunk_dim), "time": (uniform, 1, 1)}

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return ancestral(self.diffusion, obs, noise)

    def q(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """min Q_target, [B, n]."""
        return self.target_critic(obs, chunks).amin(0)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """|eps(s, alpha_t a + sigma_t e, t) - e|^2 on the data: no value in it (IDQL Sec. 4.2)."""
        steps = self.cfg.diffusion_steps
        t = ((noise.time * steps).floor() + 1) / steps  # the times at which `ancestral` evaluates
        error = losses.noise_prediction(self.diffusion, batch.obs, batch.chunk, noise.diffusion, t)
        return (error * batch.mask).mean(), {}
