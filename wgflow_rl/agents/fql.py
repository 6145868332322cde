"""Flow Q-learning (Park et al. 2025; with chunks QC-FQL, Li et al. 2025): a one-step student of a flow, and of Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import (
    Policy,
    TwinCritic,
    VectorField,
    frozen,
    slow_copy,
    standardiser,
)
from wgflow_rl.agents.protocol import AgentConfig, at_least
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class FQLConfig(AgentConfig):
    """Settings of QC-FQL (Li et al. 2025) on cube-triple; FQL (Park et al. 2025) has chunk 1."""

    alpha: float = 100.0  # weight of the distillation, set per task: `methods.py`
    flow_steps: int = 10  # Euler steps of the teacher (Park et al. 2025)

    def check(self) -> None:
        super().check()
        at_least(0, alpha=self.alpha)
        at_least(1, flow_steps=self.flow_steps)


class Noise(NamedTuple):
    """All the randomness of one update."""

    flow: Tensor  # [B, 1, C] normal, x_0 of flow matching
    time: Tensor  # [B, 1, 1] uniform
    student: Tensor  # [B, 1, C] normal, the noise that student and teacher share
    target: Tensor  # [B, 1, C] normal, a'


class FQL:
    """A flow of the behaviour, a one-step policy, twin critics and their slow copy. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: FQLConfig,
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
        self.policy = Policy(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(device)
        self.flow = VectorField(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(device)
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.target_critic = slow_copy(self.critic)
        self.optimiser = torch.optim.Adam(
            [*self.policy.parameters(), *self.flow.parameters(), *self.critic.parameters()],
            lr=cfg.lr,
            fused=True,
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        where = {"generator": generator, "device": self.device}
        return Noise(
            flow=ops.normal(batch, 1, self.chunk_dim, **where),
            time=ops.uniform(batch, 1, 1, **where),
            student=ops.normal(batch, 1, self.chunk_dim, **where),
            target=ops.normal(batch, 1, self.chunk_dim, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic, flow and student, the same in both phases; and scalars to log."""
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
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2, a' of the student, clipped."""
        with torch.no_grad():
            chunk = self.policy(next_obs, noise.target).clamp(-1, 1)
            target = ops.td_target(
                batch.returns, batch.discount, self.target_critic.mean(next_obs, chunk)[:, 0]
            )
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(
        self, batch: Batch, obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_flow + alpha |mu(s, z) - flow(s, z)|^2 - mean Q(s, clip mu(s, z)) (FQL, Algorithm 1).

        The flow learns from the data alone, the student from teacher and critic, the critic from neither. The student
        is not clipped in the distillation, so a saturated coordinate is drawn back by its teacher, not by Q.
        """
        data = batch.actions.flatten(1)[:, None]
        error = ops.flow_matching(self.flow, obs, data, noise.flow, noise.time)
        flow = (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()
        with torch.no_grad():
            teacher = ops.euler(self.flow, obs, noise.student, self.cfg.flow_steps).clamp(-1, 1)
        student = self.policy(obs, noise.student)
        distill = (student - teacher).square().mean()
        q = frozen(self.critic)(obs, student.clamp(-1, 1)).mean()
        log = {"bc_loss": flow.detach(), "distill": distill.detach(), "q_policy": q.detach()}
        return flow + self.cfg.alpha * distill - q, log

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one draw of the student."""
        obs = self.normalise(obs.to(self.device))
        noise = ops.normal(obs.shape[0], 1, self.chunk_dim, generator=generator, device=self.device)
        return self.policy(obs, noise).clamp(-1, 1).reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs = self.normalise(batch.obs)
        noise = ops.normal(
            obs.shape[0],
            diagnostics.SAMPLES,
            self.chunk_dim,
            generator=generator,
            device=self.device,
        )
        chunks = self.policy(obs, noise)
        score = self.critic.mean(obs, chunks[:, :1].clamp(-1, 1))
        return diagnostics.against_data(chunks, batch) | diagnostics.executed(score)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "flow": self.flow,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }
