"""Q-learning with adjoint matching (QAM, Li and Levine 2026): a flow tuned to the behaviour tilted by exp(Q)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents.agent import Log
from wgflow_rl.agents.fedit import FEdit, FEditConfig
from wgflow_rl.agents.networks import VectorField
from wgflow_rl.agents.sampling import normal
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import NonNegative


@dataclass(frozen=True)
class QAMConfig(FEditConfig):
    """Settings of QAM, and with `edit_scale` > 0 of QAM-E; the inverse temperature is set per task."""

    edit_scale: NonNegative = 0.0  # kappa of QAM-E; 0: no edit policy
    inverse_temperature: NonNegative = 1.0  # beta of pi ~ behaviour exp(beta Q)
    max_grad_norm: NonNegative = 1.0


class QAM(FEdit):
    """Flow of the behaviour, and a flow that adjoint matching tilts by exp(beta Q); the latter acts."""

    cfg: QAMConfig
    acts = "fast"

    def setup(self, generator: torch.Generator) -> None:
        super().setup(generator)
        self.fast = VectorField(*self.sizes, generator=generator)
        self.slow = self.target_network(self.flow, rate=self.cfg.target_rate)
        # x_0 of the stochastic path and the noise of its steps but the last.
        self.noise["path"] = (normal, 1, self.cfg.flow_steps, self.chunk_dim)

    def flow_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """Flow matching of the behaviour, and adjoint matching of the flow that acts."""
        loss, log = super().flow_loss(batch, noise)
        adjoint = self.adjoint_loss(batch.obs, noise.path)
        return loss + adjoint, log | {"adjoint_loss": adjoint.detach()}

    def adjoint_loss(self, obs: Tensor, noise: Tensor) -> Tensor:
        r"""Σ_i |(2 / σ_i) (v_fast - v_slow)(s, x_i, t_i) + σ_i g_i|² along the path x, mean over states.

        The lean adjoint (Domingo-Enrich et al. 2025): g_n = -β ∇Q_target at clip(x_n), so that a saturated coordinate
        has none, and g_i = g_{i+1} + Jᵀ g_{i+1} / n with J of 2 v_slow(s, x, t_{i+1}) - x / t_{i+1} at x_i. The
        gradient reaches v_fast alone. noise [B, 1, n, C].
        """
        n = self.cfg.flow_steps
        path = [x.requires_grad_() for x in self.path(obs, noise)]
        q = self.target_critic(obs, path[n].clamp(-1, 1)).mean(0).sum()
        g = -self.cfg.inverse_temperature * torch.autograd.grad(q, path[n])[0]
        terms = []
        for i in reversed(range(n)):
            x = path[i]
            t, after = (x.new_full((*x.shape[:-1], 1), step / n) for step in (i, i + 1))
            drift = 2 * self.slow(obs, x, after) - x / after
            g = g + torch.autograd.grad(drift, x, g)[0] / n
            x = x.detach()
            gap = self.fast(obs, x, t) - self.slow(obs, x, t)
            terms.append((2 / self.sigma(i) * gap + self.sigma(i) * g).square().sum(-1))
        return torch.stack(terms).sum(0).mean()

    @torch.no_grad()
    def path(self, obs: Tensor, noise: Tensor) -> list[Tensor]:
        """x_0 ... x_n of dx = (2 v_fast - x / (t + h)) dt + σ dW, h = 1 / n, memoryless; then a step of v_slow."""
        n = self.cfg.flow_steps
        path = [noise[..., 0, :]]
        for i in range(n - 1):
            x = path[-1]
            t = x.new_full((*x.shape[:-1], 1), i / n)
            drift = 2 * self.fast(obs, x, t) - x * n / (i + 1)
            path.append(x + drift / n + self.sigma(i) * noise[..., i + 1, :] / n**0.5)
        x = path[-1]
        t = x.new_full((*x.shape[:-1], 1), (n - 1) / n)
        return [*path, x + self.slow(obs, x, t) / n]

    def sigma(self, i: int) -> float:
        """√(2 (1 - t + h) / (t + h)) at t = i / n, h = 1 / n: the memoryless noise, kept finite at t = 0."""
        n = self.cfg.flow_steps
        return (2 * (n - i + 1) / (i + 1)) ** 0.5
