"""Behaviour cloning: the mean of a Gaussian of fixed width, by least squares. The baseline without values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import StateFunction, standardiser
from wgflow_rl.agents.protocol import AgentConfig
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class BCConfig(AgentConfig):
    """Settings of behaviour cloning, chunks of one action."""

    chunk: int = 1


class Noise(NamedTuple):
    """An update is not random."""


class BC:
    """One deterministic policy. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: BCConfig,
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
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=cfg.lr, fused=True)
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        return Noise()

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one update, the same in both phases, and scalars to log."""
        loss = self.actor_loss(batch, self.normalise(batch.obs))
        return loss, {"actor_loss": loss.detach()}

    def settle(self) -> None:
        """There are no slow copies."""

    def actor_loss(self, batch: Batch, obs: Tensor) -> Tensor:
        """|a - mu(s)|^2, which is -log N(a; mu(s), 1) up to constants: two modes are answered by their mean."""
        error = (self.policy(obs) - batch.actions.flatten(1)[:, None]).square()
        return (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()

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
        return diagnostics.against_data(diagnostics.repeat(chunk), batch)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
        }
