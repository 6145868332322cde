"""FEdit (EXPO, Dong et al. 2025, as run by Li and Levine 2026): a flow whose chunks a Gaussian policy edits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wgflow_rl.agents import losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import CriticEnsemble, StateMLP, VectorField, frozen
from wgflow_rl.agents.sampling import euler, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative


@dataclass(frozen=True)
class FEditConfig(AgentConfig):
    """Settings of FEdit (Li and Levine 2026); the scale of the edit is set per task."""

    edit_scale: NonNegative = 0.2  # kappa, largest edit of a coordinate
    critics: Count = 10  # K
    # rho, standard deviations of the critics below their mean in the target
    pessimism: NonNegative = 0.5
    flow_steps: Count = 10  # Euler steps


class Editor(nn.Module):
    """Edit policy e = tanh(u), u ~ N(mean(s, a), std(s, a)^2), and the temperature of its entropy bonus."""

    def __init__(
        self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator
    ):
        super().__init__()
        self.net = StateMLP(obs_dim, chunk_dim, 2 * chunk_dim, hidden, generator=generator)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, obs: Tensor, chunks: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Edits [B, n, C] of chunks [B, n, C], and their log densities [B, n]. noise [B, n, C] ~ N(0, I)."""
        mean, log_std = self.net(obs, chunks).chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        u = mean + log_std.exp() * noise
        log_normal = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2
        log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return u.tanh(), (log_normal - log_slope).sum(-1)


class FEdit(Agent):
    """Flow of the behaviour, whose chunks an edit policy moves by at most kappa per coordinate towards higher Q."""

    cfg: FEditConfig
    editor: Editor | None
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.flow = VectorField(*self.sizes, generator=generator)
        self.critic = CriticEnsemble(*self.critic_sizes, cfg.critics, generator=generator)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        self.editor = None  # with kappa = 0 there is nothing to edit
        if cfg.edit_scale:
            self.editor = Editor(self.obs_dim, C, cfg.hidden, generator=generator)
        self.latent = (2, C)  # noise of the flow, noise of the edit
        self.noise = {
            "flow": (normal, 1, C),  # x_0 of flow matching
            "time": (uniform, 1, 1),
            "policy": (normal, 1, 2, C),  # of the chunk that is edited
            "target": (normal, 1, 2, C),  # of a'
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """clip(a + kappa e), a = clip flow(s, z) without gradient. noise [B, n, 2, C] -> [B, n, C]."""
        chunks = self.generate(obs, noise)
        return chunks if self.editor is None else self.edit(obs, chunks, noise)[0]

    @torch.no_grad()
    def generate(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Chunks of the flow that acts, clipped."""
        velocity = getattr(self, self.acts)
        return euler(velocity, obs, noise[..., 0, :], self.cfg.flow_steps).clamp(-1, 1)

    def edit(self, obs: Tensor, chunks: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Edited chunks, clipped, and the log densities of their edits."""
        assert self.editor is not None
        edit, log_density = self.editor(obs, chunks, noise[..., 1, :])
        return (chunks + self.cfg.edit_scale * edit).clamp(-1, 1), log_density

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """(Q_k(s, a) - R_h - gamma^h [mean_k - rho std_k] Q_target,k(s', a'))^2, one a' of the policy."""
        with torch.no_grad():
            chunk = self.sample(batch.next_obs, noise.target).clamp(-1, 1)
            q = self.target_critic(batch.next_obs, chunk)[..., 0]
            value = q.mean(0) - self.cfg.pessimism * q.std(0, correction=0)
        return losses.td_loss(self.critic, batch, value)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L_flow + L_edit."""
        loss, log = self.flow_loss(batch, noise)
        if self.editor is None:
            return loss, log
        edit, edit_log = self.edit_loss(batch, noise)
        return loss + edit, log | edit_log

    def flow_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """Flow matching of the data's chunks (FQL Eq. 1)."""
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.flow, noise.time)
        loss = (error * batch.mask).mean()
        return loss, {"bc_loss": loss.detach()}

    def edit_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """-Q(s, clip(a + kappa e)) + alpha log pi(e | s, a), and alpha (entropy + C / 2) for the temperature alpha.

        alpha falls while the entropy is above -C / 2 (soft actor-critic, Haarnoja et al. 2018). No gradient reaches
        flow or critics.
        """
        chunks = self.generate(batch.obs, noise.policy)
        chunks, log_density = self.edit(batch.obs, chunks, noise.policy)
        q = frozen(self.critic)(batch.obs, chunks).mean()
        assert self.editor is not None
        alpha, entropy = self.editor.log_temperature.exp(), -log_density.mean()
        temperature_loss = alpha * (entropy.detach() + self.chunk_dim / 2)
        log = {"q_policy": q.detach(), "entropy": entropy.detach(), "temperature": alpha.detach()}
        return -q - alpha.detach() * entropy + temperature_loss, log
