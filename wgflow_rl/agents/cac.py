"""Consistency actor-critic (CAC; Ding and Jin 2023): a consistency model of the data that also follows Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import TwinCritic, VectorField, frozen, slow_copy, standardiser
from wgflow_rl.agents.protocol import AgentConfig, above, at_least
from wgflow_rl.data.batch import Batch

SIGMA_DATA = (
    0.5  # standard deviation of actions that the preconditioning assumes (Karras et al. 2022)
)


@dataclass(frozen=True)
class CACConfig(AgentConfig):
    """Settings of CAC (Ding and Jin 2023), chunks of one action."""

    chunk: int = 1
    eta: float = 0.1  # weight of Q: our choice (Park et al. 2025 set it per task)
    levels: int = 40  # noise levels of consistency training (Ding and Jin 2023)
    sigma_min: float = 0.002  # of the data's units (Song et al. 2023)
    sigma_max: float = 80.0
    denoising_steps: int = 2  # network evaluations to one action (Ding and Jin 2023)

    def check(self) -> None:
        super().check()
        at_least(0, eta=self.eta)
        at_least(2, levels=self.levels)
        at_least(1, denoising_steps=self.denoising_steps)
        above(0, sigma_min=self.sigma_min)
        above(self.sigma_min, sigma_max=self.sigma_max)


class Noise(NamedTuple):
    """All the randomness of one update."""

    data: Tensor  # [B, 1, C] normal
    level: Tensor  # [B, 1, 1] uniform, which pair of neighbouring noise levels
    policy: Tensor  # [B, 1, K, C] normal, K denoising steps to the chunk that Q judges
    target: Tensor  # [B, 1, K, C] normal, a'


class CAC:
    """A consistency policy, twin critics, slow copies of both. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: CACConfig,
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
        self.policy = VectorField(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.target_policy = slow_copy(self.policy)
        self.target_critic = slow_copy(self.critic)
        self.sigmas = ops.karras_levels(cfg.levels, cfg.sigma_min, cfg.sigma_max).to(device)
        self.optimiser = torch.optim.Adam(
            [*self.policy.parameters(), *self.critic.parameters()], lr=cfg.lr, fused=True
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        steps, where = self.cfg.denoising_steps, {"generator": generator, "device": self.device}
        return Noise(
            data=ops.normal(batch, 1, self.chunk_dim, **where),
            level=ops.uniform(batch, 1, 1, **where),
            policy=ops.normal(batch, 1, steps, self.chunk_dim, **where),
            target=ops.normal(batch, 1, steps, self.chunk_dim, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic and policy, the same in both phases; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        critic_loss, critic_log = self.critic_loss(batch, obs, next_obs, noise)
        actor_loss, actor_log = self.actor_loss(batch, obs, noise)
        log = {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            **critic_log,
            **actor_log,
        }
        return critic_loss + actor_loss, log

    def settle(self) -> None:
        """After the optimiser's step: slow copies follow."""
        ops.polyak_(self.target_critic, self.critic, self.cfg.target_rate)
        ops.polyak_(self.target_policy, self.policy, self.cfg.target_rate)

    def critic_loss(
        self, batch: Batch, obs: Tensor, next_obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h min Q_target(s_{t+h}, a'))^2, a' of the slow policy."""
        with torch.no_grad():
            chunk = self.generate(self.target_policy, next_obs, noise.target).clamp(-1, 1)
            value = self.target_critic(next_obs, chunk).amin(0)[:, 0]
            target = ops.td_target(batch.returns, batch.discount, value)
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(
        self, batch: Batch, obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """|f(a + sigma_{n+1} e, sigma_{n+1}) - sg f_slow(a + sigma_n e, sigma_n)|^2 - eta Q(s, clip a_hat) / mean|Q|.

        Consistency training (Song et al. 2023, Algorithm 3) beside Q (Ding and Jin 2023). Only Q is clipped: a
        saturated coordinate is moved by the consistency loss. No gradient to critics or slow copies.
        """
        data, sigmas = batch.actions.flatten(1)[:, None], self.sigmas
        n = (noise.level * (len(sigmas) - 1)).long()
        low, high = sigmas[n], sigmas[n + 1]
        with torch.no_grad():
            teacher = self.denoise(self.target_policy, obs, data + low * noise.data, low)
        error = (self.denoise(self.policy, obs, data + high * noise.data, high) - teacher).square()
        consistency = (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()
        q = frozen(self.critic)(
            obs, self.generate(self.policy, obs, noise.policy).clamp(-1, 1)
        ).amin(0)
        log = {"bc_loss": consistency.detach(), "q_policy": q.detach().mean()}
        return consistency - self.cfg.eta * ops.value_scale(q) * q.mean(), log

    def denoise(self, policy: VectorField, obs: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """f(s, x, sigma) = c_skip x + c_out F(s, c_in x, log(sigma) / 4), the identity at sigma_min."""
        above_min = sigma - self.cfg.sigma_min
        c_skip = SIGMA_DATA**2 / (above_min.square() + SIGMA_DATA**2)
        c_in = (sigma.square() + SIGMA_DATA**2).rsqrt()
        c_out = above_min * SIGMA_DATA * c_in
        return c_skip * x + c_out * policy(obs, c_in * x, sigma.log() / 4)

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    # ---- acting -------------------------------------------------------------------------------------------------

    def generate(self, policy: VectorField, obs: Tensor, noise: Tensor) -> Tensor:
        """Denoise from sigma_max, then K - 1 times add noise again and denoise (Song et al. 2023, Algorithm 1).

        noise [B, n, K, C] -> [B, n, C], not clipped, differentiable.
        """
        steps = self.cfg.denoising_steps
        # From the top, evenly; one by one: a list would be carried to the device each time.
        sigmas = [
            self.sigmas[round((len(self.sigmas) - 1) * (steps - i) / steps)] for i in range(steps)
        ]
        one = noise.new_ones(*noise.shape[:-2], 1)
        x = self.denoise(policy, obs, sigmas[0] * noise[..., 0, :], sigmas[0] * one)
        for i in range(1, steps):
            again = (sigmas[i].square() - self.cfg.sigma_min**2).sqrt() * noise[..., i, :]
            x = self.denoise(policy, obs, x.clamp(-1, 1) + again, sigmas[i] * one)
        return x

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one draw of the policy."""
        obs = self.normalise(obs.to(self.device))
        chunk = self.draw(obs, 1, generator).clamp(-1, 1)
        return chunk.reshape(obs.shape[0], self.cfg.chunk, -1)

    def draw(self, obs: Tensor, n: int, generator: torch.Generator) -> Tensor:
        shape = (obs.shape[0], n, self.cfg.denoising_steps, self.chunk_dim)
        return self.generate(
            self.policy, obs, ops.normal(*shape, generator=generator, device=self.device)
        )

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        chunks = self.draw(obs, diagnostics.SAMPLES, generator)
        score = self.critic.mean(obs, chunks[:, :1].clamp(-1, 1))
        return diagnostics.against_data(chunks, batch) | diagnostics.executed(score)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "critic": self.critic,
            "target_policy": self.target_policy,
            "target_critic": self.target_critic,
        }
