"""Mean Velocity Policy (MVP, as the DFP paper compares with it): a one-step MeanFlow, the best of N executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import TopKConfig
from wgflow_rl.agents.networks import MeanVelocityPolicy, TwinCritic
from wgflow_rl.agents.sampling import logit_normal, normal, top_k
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import NonNegative


@dataclass(frozen=True)
class MVPConfig(TopKConfig):
    """Settings of MVP (Zhan et al. 2026) as DFP's Table 2 compares it; MVP with top-K has lam 0.5.

    Where neither paper gives a number it is that of DFP's published code, or our choice.
    """

    ivc: NonNegative = 1.0  # instantaneous velocity constraint (published code); 0 on cube-triple
    time_mean: float = -0.4  # r and t are sigmoid(N(time_mean, time_std)), sorted (published code)
    time_std: NonNegative = 1.0
    lam: NonNegative = 0.0  # lambda, weight of the top-K term online; 0 is MVP itself

    @property
    def online_only(self) -> frozenset[str]:
        # K is not: it is the number of noise vectors that every update draws.
        return frozenset({"lr_end", "lam", "old_rate"} if type(self) is MVPConfig else ())


class MVP(Agent):
    """One-step policy a = e - u(s, e, 0, 1), trained by the MeanFlow identity; the critic is `Agent.critic_loss`."""

    cfg: MVPConfig

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.policy = MeanVelocityPolicy(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.old_policy = self.target_network(self.policy, rate=cfg.old_rate)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        self.noise = {
            "data": (normal, 1, C),  # e of the data term
            "data_times": (normal, 1, 2),  # its r and t, before the sigmoid
            "positives": (normal, cfg.top_k, C),  # the same for the top-K term
            "positive_times": (normal, cfg.top_k, 2),
            "candidates": (normal, cfg.candidates, C),  # noise of the old policy
            "target": (normal, cfg.target_samples, C),  # noise of a'
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy(obs, noise)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L = L_MF(data) + lam L_MF(top-K): the same regression on the data and on the top-K (DFP Table 6)."""
        error = self.mean_flow(batch.obs, batch.chunk, noise.data, noise.data_times)
        loss = (error * batch.mask).mean()
        log = {"bc_loss": loss.detach()}
        lam = self.cfg.lam if online else 0.0
        if lam > 0:
            with torch.no_grad():
                pool = self.old_policy(batch.obs, noise.candidates)  # [B, N, C]
                q = self.q(batch.obs, pool.clamp(-1, 1))
                best = top_k(pool.clamp(-1, 1), q, self.cfg.top_k)  # DFP Eq. 15
            improve = self.mean_flow(batch.obs, best, noise.positives, noise.positive_times).mean()
            loss = loss + lam * improve
            log["topk_loss"] = improve.detach()
        return loss, log

    def mean_flow(self, obs: Tensor, actions: Tensor, e: Tensor, times: Tensor) -> Tensor:
        """MeanFlow identity and instantaneous velocity constraint, elementwise, [B, G, C].

        |u(z_t, r, t) - sg[v - (t - r) du/dt]|^2 + ivc |u(z_r, r, r) - v|^2 with v = e - a; the second says that a mean
        velocity over no time is the velocity. actions, e [B, G, C], times [B, G, 2] normal.
        """
        times = logit_normal(times, self.cfg.time_mean, self.cfg.time_std).sort(-1).values
        r, t = times.split(1, -1)
        error = losses.mean_flow(self.policy.u, obs, actions, e, r, t)
        if self.cfg.ivc > 0:
            u = self.policy.u(obs, (1 - r) * actions + r * e, r, r)
            error = error + self.cfg.ivc * (u - (e - actions)).square()
        return error

    def start_online(self) -> None:
        """Restart the old policy from the present one."""
        self.old_policy.load_state_dict(self.policy.state_dict())

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> Log:
        """Add the values of the candidates, if there is a top-K term."""
        log, obs = super().diagnose(batch, generator), self.normalise(batch.obs)
        if self.cfg.lam == 0:
            return log
        pool = self.old_policy(obs, self.draw_latent(obs, self.cfg.candidates, generator))
        log |= diagnostics.candidates(self.q(obs, pool.clamp(-1, 1)), self.cfg.top_k)
        return log
