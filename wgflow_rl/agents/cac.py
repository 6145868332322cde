"""Consistency actor-critic (CAC; Ding and Jin 2023): a consistency model of the data that also follows Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import TwinCritic, VectorField, frozen
from wgflow_rl.agents.sampling import karras_levels, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative, Positive, TwoOrMore, above

# standard deviation of actions that the preconditioning assumes (Karras et al. 2022)
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class CACConfig(AgentConfig):
    """Settings of CAC (Ding and Jin 2023), chunks of one action."""

    chunk: int = 1
    eta: NonNegative = 0.1  # weight of Q: our choice (Park et al. 2025 set it per task)
    levels: TwoOrMore = 40  # noise levels of consistency training (Ding and Jin 2023)
    sigma_min: Positive = 0.002  # of the data's units (Song et al. 2023)
    sigma_max: float = 80.0
    denoising_steps: Count = 2  # network evaluations to one action (Ding and Jin 2023)

    def check(self) -> None:
        super().check()
        above(self.sigma_min, sigma_max=self.sigma_max)


class CAC(Agent):
    """Consistency policy, twin critics, target networks of both."""

    cfg: CACConfig
    sigmas: Tensor  # [N] noise levels, rising

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.policy = VectorField(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_policy = self.target_network(self.policy, rate=cfg.target_rate)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        levels = karras_levels(cfg.levels, cfg.sigma_min, cfg.sigma_max)
        self.register_buffer("sigmas", levels, persistent=False)
        self.latent = (cfg.denoising_steps, C)
        self.noise = {
            "data": (normal, 1, C),
            "level": (uniform, 1, 1),  # which pair of neighbouring noise levels
            "policy": (normal, 1, cfg.denoising_steps, C),  # noise of the chunk that Q judges
            "target": (normal, 1, cfg.denoising_steps, C),  # noise of a'
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.generate(self.policy, obs, noise)

    def generate(self, policy: VectorField, obs: Tensor, noise: Tensor) -> Tensor:
        """Denoise from sigma_max, then K - 1 times add noise again and denoise (Song et al. 2023, Algorithm 1).

        noise [B, n, K, C] -> [B, n, C], not clipped, differentiable.
        """
        steps = self.cfg.denoising_steps
        # From the top, evenly; indexed one by one: a list would be copied to the device each time.
        sigmas = [
            self.sigmas[round((len(self.sigmas) - 1) * (steps - i) / steps)] for i in range(steps)
        ]
        one = noise.new_ones(*noise.shape[:-2], 1)
        x = self.denoise(policy, obs, sigmas[0] * noise[..., 0, :], sigmas[0] * one)
        for i in range(1, steps):
            again = (sigmas[i].square() - self.cfg.sigma_min**2).sqrt() * noise[..., i, :]
            x = self.denoise(policy, obs, x.clamp(-1, 1) + again, sigmas[i] * one)
        return x

    def denoise(self, policy: VectorField, obs: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """f(s, x, sigma) = c_skip x + c_out F(s, c_in x, log(sigma) / 4), the identity at sigma_min."""
        above_min = sigma - self.cfg.sigma_min
        c_skip = SIGMA_DATA**2 / (above_min.square() + SIGMA_DATA**2)
        c_in = (sigma.square() + SIGMA_DATA**2).rsqrt()
        c_out = above_min * SIGMA_DATA * c_in
        return c_skip * x + c_out * policy(obs, c_in * x, sigma.log() / 4)

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h min Q_target(s_{t+h}, a'))^2, a' of the target policy."""
        with torch.no_grad():
            chunk = self.generate(self.target_policy, batch.next_obs, noise.target).clamp(-1, 1)
            value = self.target_critic(batch.next_obs, chunk).amin(0)[:, 0]
        return losses.td_loss(self.critic, batch, value)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """|f(a + sigma_{n+1} e, sigma_{n+1}) - sg f_target(a + sigma_n e, sigma_n)|^2 - eta Q(s, clip a_hat) / mean|Q|.

        Consistency training (Song et al. 2023, Algorithm 3) beside Q (Ding and Jin 2023). Only Q is clipped: a
        saturated coordinate is moved by the consistency loss. No gradient to critics or target networks.
        """
        obs, data = batch.obs, batch.chunk
        n = (noise.level * (len(self.sigmas) - 1)).long()
        low, high = self.sigmas[n], self.sigmas[n + 1]
        with torch.no_grad():
            teacher = self.denoise(self.target_policy, obs, data + low * noise.data, low)
        error = (self.denoise(self.policy, obs, data + high * noise.data, high) - teacher).square()
        consistency = (error * batch.mask).mean()
        q = frozen(self.critic)(obs, self.sample(obs, noise.policy).clamp(-1, 1)).amin(0)
        log = {"bc_loss": consistency.detach(), "q_policy": q.detach().mean()}
        return consistency - self.cfg.eta * losses.value_scale(q) * q.mean(), log
