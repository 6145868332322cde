"""Score-regularised policy optimisation (SRPO, Chen et al. 2023): one action climbs IQL's Q and the data's density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import (
    StateFunction,
    TwinCritic,
    VectorField,
    frozen,
    slow_copy,
    standardiser,
)
from wgflow_rl.agents.protocol import AgentConfig, above, fraction
from wgflow_rl.data.batch import Batch

EARLIEST, LATEST = 0.02, 0.98  # diffusion times at which the policy is scored (SRPO Sec. 4)


@dataclass(frozen=True)
class SRPOConfig(AgentConfig):
    """Settings of SRPO (Chen et al. 2023), chunks of one action."""

    chunk: int = 1
    expectile: float = 0.9  # tau: our choice, as IQL
    beta: float = 0.1  # temperature: our choice (Park et al. 2025 set it per task)

    def check(self) -> None:
        super().check()
        fraction(expectile=self.expectile)
        above(0, beta=self.beta)


class Noise(NamedTuple):
    """All the randomness of one update: normal [B, 1, C] and uniform [B, 1, 1], for diffusion and policy."""

    diffusion: Tensor
    diffusion_time: Tensor
    score: Tensor
    score_time: Tensor


class SRPO:
    """A deterministic policy, a diffusion of the behaviour, IQL's critics and value. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: SRPOConfig,
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
        self.policy = StateFunction(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.diffusion = VectorField(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.value = StateFunction(obs_dim, 1, cfg.hidden, generator=generator, layer_norm=True).to(
            device
        )
        self.target_critic = slow_copy(self.critic)
        trained = (self.policy, self.diffusion, self.critic, self.value)
        self.optimiser = torch.optim.Adam(
            [p for module in trained for p in module.parameters()], lr=cfg.lr, fused=True
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        where = {"generator": generator, "device": self.device}
        return Noise(
            diffusion=ops.normal(batch, 1, self.chunk_dim, **where),
            diffusion_time=ops.uniform(batch, 1, 1, **where),
            score=ops.normal(batch, 1, self.chunk_dim, **where),
            score_time=ops.uniform(batch, 1, 1, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Everything at once, the same in both phases; and scalars to log.

        The paper trains diffusion and critics first, the policy after; at once, the policy follows them a little late.
        """
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        value_loss, advantage = self.value_loss(batch, obs)
        critic_loss = self.critic_loss(batch, obs, next_obs)
        diffusion_loss = self.diffusion_loss(batch, obs, noise)
        actor_loss, q = self.actor_loss(obs, noise)
        log = {
            "critic_loss": critic_loss.detach(),
            "value_loss": value_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "diffusion_loss": diffusion_loss.detach(),
            "advantage": advantage.mean(),
            "q_policy": q,
        }
        return critic_loss + value_loss + diffusion_loss + actor_loss, log

    def settle(self) -> None:
        """After the optimiser's step: slow copies follow."""
        ops.polyak_(self.target_critic, self.critic, self.cfg.target_rate)

    def value_loss(self, batch: Batch, obs: Tensor) -> tuple[Tensor, Tensor]:
        """V is the expectile of min Q_target over the data's actions (IQL Eq. 5); and the advantage [B]."""
        return ops.implicit_value_loss(
            self.value, self.target_critic, batch, obs, self.cfg.expectile
        )

    def critic_loss(self, batch: Batch, obs: Tensor, next_obs: Tensor) -> Tensor:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h V(s_{t+h}))^2: only actions of the data are asked for (IQL Eq. 6)."""
        return ops.implicit_critic_loss(self.critic, self.value, batch, obs, next_obs)

    def diffusion_loss(self, batch: Batch, obs: Tensor, noise: Noise) -> Tensor:
        """|eps(s, alpha_t a + sigma_t e, t) - e|^2 on the data (SRPO Eq. 3)."""
        data = batch.actions.flatten(1)[:, None]
        t = EARLIEST + (LATEST - EARLIEST) * noise.diffusion_time
        error = ops.noise_prediction(self.diffusion, obs, data, noise.diffusion, t)
        return (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()

    def actor_loss(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """-Q(s, pi(s)) / mean|Q| + (1 / beta) <sg[sigma_t^2 (eps(s, a_t, t) - e)], pi(s)>.

        a_t = alpha_t pi(s) + sigma_t e. The inner product has the gradient of the diffused reverse KL to the behaviour,
        without the diffusion's own Jacobian (SRPO Eq. 9 and 10). No gradient to critic or diffusion. Also: mean Q.
        """
        chunk = self.policy(obs)  # [B, 1, C]
        t = EARLIEST + (LATEST - EARLIEST) * noise.score_time
        alpha, sigma = ops.vp_noise(t)
        with torch.no_grad():
            eps = self.diffusion(obs, alpha * chunk + sigma * noise.score, t)
            pull = sigma.square() * (eps - noise.score)
        q = frozen(self.critic)(obs, chunk.clamp(-1, 1)).mean(0)
        score = (pull * chunk).sum(-1)
        return (score / self.cfg.beta - ops.value_scale(q) * q).mean(), q.detach().mean()

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]."""
        obs = self.normalise(obs.to(self.device))
        return self.policy(obs).clamp(-1, 1).reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        chunk = self.policy(obs)
        log = diagnostics.against_data(diagnostics.repeat(chunk), batch)
        return log | diagnostics.executed(self.critic.mean(obs, chunk.clamp(-1, 1)))

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "diffusion": self.diffusion,
            "critic": self.critic,
            "value": self.value,
            "target_critic": self.target_critic,
        }
