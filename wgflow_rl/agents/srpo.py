"""Score-regularised policy optimisation (SRPO, Chen et al. 2023): one action climbs IQL's Q and the data's density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.implicit_q import ImplicitQ
from wgflow_rl.agents.networks import DeterministicPolicy, VectorField, frozen
from wgflow_rl.agents.sampling import normal, uniform, vp_noise
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Positive, Share

EARLIEST, LATEST = 0.02, 0.98  # diffusion times at which the policy is scored (SRPO Sec. 4)


@dataclass(frozen=True)
class SRPOConfig(AgentConfig):
    """Settings of SRPO (Chen et al. 2023), chunks of one action."""

    chunk: int = 1
    expectile: Share = 0.9  # tau: our choice, as IQL
    beta: Positive = 0.1  # temperature: our choice (Park et al. 2025 set it per task)


class SRPO(ImplicitQ):
    """Deterministic policy, a diffusion of the behaviour, the values of IQL.

    The paper trains diffusion and critics first, the policy after; here all at once, and the policy follows them.
    """

    cfg: SRPOConfig

    def setup(self, generator: torch.Generator) -> None:
        C = self.chunk_dim
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.diffusion = VectorField(*self.sizes, generator=generator)
        self.add_values(generator)
        self.latent = None
        self.noise = {
            "diffusion": (normal, 1, C),
            "diffusion_time": (uniform, 1, 1),
            "score": (normal, 1, C),  # e of the policy's diffused action
            "score_time": (uniform, 1, 1),
        }

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L_diffusion + L_policy, without common weights."""
        diffusion = self.diffusion_loss(batch, noise)
        policy, q = self.policy_loss(batch, noise)
        log = {"actor_loss": policy.detach(), "diffusion_loss": diffusion.detach(), "q_policy": q}
        return diffusion + policy, log

    def diffusion_loss(self, batch: Batch, noise: Any) -> Tensor:
        """|eps(s, alpha_t a + sigma_t e, t) - e|^2 on the data (SRPO Eq. 3)."""
        t = EARLIEST + (LATEST - EARLIEST) * noise.diffusion_time
        error = losses.noise_prediction(self.diffusion, batch.obs, batch.chunk, noise.diffusion, t)
        return (error * batch.mask).mean()

    def policy_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Tensor]:
        """-Q(s, pi(s)) / mean|Q| + (1 / beta) <sg[sigma_t^2 (eps(s, a_t, t) - e)], pi(s)>, and mean Q.

        a_t = alpha_t pi(s) + sigma_t e. The inner product has the gradient of the diffused reverse KL to the behaviour,
        without the diffusion's own Jacobian (SRPO Eq. 9 and 10). No gradient to critic or diffusion.
        """
        chunk = self.policy(batch.obs)  # [B, 1, C]
        t = EARLIEST + (LATEST - EARLIEST) * noise.score_time
        alpha, sigma = vp_noise(t)
        with torch.no_grad():
            eps = self.diffusion(batch.obs, alpha * chunk + sigma * noise.score, t)
            pull = sigma.square() * (eps - noise.score)
        q = frozen(self.critic)(batch.obs, chunk.clamp(-1, 1)).mean(0)
        score = (pull * chunk).sum(-1)
        return (score / self.cfg.beta - losses.value_scale(q) * q).mean(), q.detach().mean()
