"""FAWAC (Park et al. 2025): flow matching of the data, each action weighted by its exponentiated advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import TwinCritic, VectorField, slow_copy, standardiser
from wgflow_rl.agents.protocol import AgentConfig, at_least
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class FAWACConfig(AgentConfig):
    """Settings of FAWAC (Park et al. 2025), chunks of one action."""

    chunk: int = 1
    alpha: float = 0.8  # inverse temperature: our choice (Park et al. 2025 set it per task)
    flow_steps: int = 10  # Euler steps from noise to action

    def check(self) -> None:
        super().check()
        at_least(0, alpha=self.alpha)
        at_least(1, flow_steps=self.flow_steps)


class Noise(NamedTuple):
    """All the randomness of one update."""

    flow: Tensor  # [B, 1, C] normal, x_0 of flow matching
    time: Tensor  # [B, 1, 1] uniform
    policy: Tensor  # [B, 1, C] normal, the policy's own action, for the advantage
    target: Tensor  # [B, 1, C] normal, a'


class FAWAC:
    """A flow policy, twin critics and their slow copy. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: FAWACConfig,
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
        self.flow = VectorField(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(device)
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.target_critic = slow_copy(self.critic)
        self.optimiser = torch.optim.Adam(
            [*self.flow.parameters(), *self.critic.parameters()], lr=cfg.lr, fused=True
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        where = {"generator": generator, "device": self.device}
        return Noise(
            flow=ops.normal(batch, 1, self.chunk_dim, **where),
            time=ops.uniform(batch, 1, 1, **where),
            policy=ops.normal(batch, 1, self.chunk_dim, **where),
            target=ops.normal(batch, 1, self.chunk_dim, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic and flow, the same in both phases; and scalars to log."""
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

    def critic_loss(
        self, batch: Batch, obs: Tensor, next_obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2, a' of the flow, clipped."""
        with torch.no_grad():
            chunk = self.generate(next_obs, noise.target).clamp(-1, 1)
            target = ops.td_target(
                batch.returns, batch.discount, self.target_critic.mean(next_obs, chunk)[:, 0]
            )
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(
        self, batch: Batch, obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """exp(alpha A) L_flow with A = Q(s, a) - Q(s, flow(s, z)): advantage-weighted flow matching.

        AWAC (Nair et al. 2020) with a flow for its Gaussian. The state value is one draw of the policy; weights are
        capped at 100. No gradient of Q reaches the flow.
        """
        data = batch.actions.flatten(1)[:, None]
        with torch.no_grad():
            pair = torch.cat([data, self.generate(obs, noise.policy).clamp(-1, 1)], 1)
            q = self.critic.mean(obs, pair)  # [B, 2]
            weight = ops.advantage_weight(q[:, 0] - q[:, 1], self.cfg.alpha) * batch.complete
        error = ops.flow_matching(self.flow, obs, data, noise.flow, noise.time)
        loss = (weight[:, None, None] * error * ops.coordinates(batch.valid, self.chunk_dim)).mean()
        return loss, {"weight": weight.mean(), "q_policy": q[:, 1].mean()}

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    # ---- acting -------------------------------------------------------------------------------------------------

    def generate(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Noise to chunks, [B, n, C], not clipped."""
        return ops.euler(self.flow, obs, noise, self.cfg.flow_steps)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one draw of the flow."""
        obs = self.normalise(obs.to(self.device))
        noise = ops.normal(obs.shape[0], 1, self.chunk_dim, generator=generator, device=self.device)
        return self.generate(obs, noise).clamp(-1, 1).reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs, count = self.normalise(batch.obs), diagnostics.SAMPLES
        chunks = self.generate(
            obs,
            ops.normal(
                obs.shape[0], count, self.chunk_dim, generator=generator, device=self.device
            ),
        )
        score = self.critic.mean(obs, chunks[:, :1].clamp(-1, 1))
        return diagnostics.against_data(chunks, batch) | diagnostics.executed(score)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "flow": self.flow,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }
