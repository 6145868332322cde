"""Drift Q-learning (2606.00350): a one-step policy that drifts to the data's action and climbs Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import wgflow as wg
from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import Policy, TwinCritic, frozen
from wgflow_rl.agents.sampling import normal
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import NonNegative, Positive, TwoOrMore

KERNELS = {"gaussian": wg.Gaussian, "laplace": wg.Laplace}


@dataclass(frozen=True)
class DriftQLConfig(AgentConfig):
    """Settings of DriftQL, chunks of one action; alpha, temperature, target, generated and gamma are set per task."""

    chunk: int = 1
    generated: TwoOrMore = 32  # N, samples per state that drift
    alpha: NonNegative = 100.0  # weight of the drift
    # tau, length scale of the repulsion for distances divided by sqrt(C)
    temperature: Positive = 0.2
    kernel: str = "gaussian"  # gaussian or laplace
    target: str = "mean"  # of the two target critics: mean or min

    def check(self) -> None:
        super().check()
        for name, value, known in (
            ("kernel", self.kernel, tuple(KERNELS)),
            ("target", self.target, ("mean", "min")),
        ):
            if value not in known:
                raise ValueError(f"--{name} is {value!r}; wanted {' or '.join(known)}")


class DriftQL(Agent):
    """Pushforward policy whose samples are drawn to the data, repel each other, and follow Q."""

    cfg: DriftQLConfig

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.policy = Policy(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        kernel = KERNELS[cfg.kernel](cfg.temperature * C**0.5)
        self.field = wg.DriftingField(kernel, skip_self=True)
        self.noise = {
            "generated": (normal, cfg.generated, C),
            "policy": (normal, 1, C),  # z of the action that Q judges
            "target": (normal, 1, C),  # z of a'
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy(obs, noise)

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """(Q_i(s, a) - R_h - gamma^h agg_i Q_target,i(s', a'))^2 with one a' ~ pi (DriftQL Sec. 3)."""
        with torch.no_grad():
            chunk = self.policy(batch.next_obs, noise.target).clamp(-1, 1)
            q = self.target_critic(batch.next_obs, chunk)[..., 0]
            value = q.mean(0) if self.cfg.target == "mean" else q.amin(0)
        return losses.td_loss(self.critic, batch, value)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """alpha mean (a_hat - sg[clip(a_hat + V)])^2 - mean Q(s, a') (DriftQL Sec. 3).

        V_j = a - sum_{k != j} w_jk a_hat_k is Eq. 3 of DFP with each sample left out of its own negatives. Samples are
        clipped before the loss, so a saturated coordinate has no gradient. Q judges a fresh sample, clipped; no
        gradient reaches the critic.
        """
        a_hat = self.policy(batch.obs, noise.generated).clamp(-1, 1) * batch.mask
        with torch.no_grad():
            V = (a_hat + self.field(a_hat, batch.chunk * batch.mask)).clamp(-1, 1) - a_hat
        drift = wg.regress_onto(a_hat, V)
        chunk = self.policy(batch.obs, noise.policy).clamp(-1, 1)
        q = frozen(self.critic)(batch.obs, chunk).mean()
        log = {"bc_loss": drift.detach(), "q_policy": q.detach()}
        return self.cfg.alpha * drift - q, log
