"""Best-of-N flow policy (BFN; with chunks QC-BFN, Li et al. 2025): clone by flow matching, choose by value."""

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
class BFNConfig(AgentConfig):
    """Settings of QC-BFN (Li et al. 2025); BFN has chunk 1 and N = 4."""

    target_samples: int = 32  # N, a' is the best of these by the critic (Li et al. 2025)
    act_samples: int = 32  # N again: one number for both (Li et al. 2025)
    act_temperature: float = 0.0  # 0: the best (paper). Else one is drawn from softmax(Q / this)
    flow_steps: int = 10  # Euler steps from noise to chunk

    def check(self) -> None:
        super().check()
        at_least(
            1,
            target_samples=self.target_samples,
            act_samples=self.act_samples,
            flow_steps=self.flow_steps,
        )
        at_least(0, act_temperature=self.act_temperature)


class Noise(NamedTuple):
    """All the randomness of one update."""

    flow: Tensor  # [B, 1, C] normal, x_0 of flow matching
    time: Tensor  # [B, 1, 1] uniform
    target: Tensor  # [B, N, C] normal, proposals of a'


class BFN:
    """A flow of the behaviour, twin critics and their slow copy. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: BFNConfig,
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
            target=ops.normal(batch, self.cfg.target_samples, self.chunk_dim, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic and flow, the same in both phases; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        critic_loss, critic_log = self.critic_loss(batch, obs, next_obs, noise)
        actor_loss = self.actor_loss(batch, obs, noise)
        log = {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), **critic_log}
        return critic_loss + actor_loss, log

    def settle(self) -> None:
        """After the optimiser's step: slow copies follow."""
        ops.polyak_(self.target_critic, self.critic, self.cfg.target_rate)

    def critic_loss(
        self, batch: Batch, obs: Tensor, next_obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2, a' the best of N draws of the flow."""
        with torch.no_grad():
            best = self.best(next_obs, self.propose(next_obs, noise.target))
            target = ops.td_target(
                batch.returns, batch.discount, self.target_critic.mean(next_obs, best)[:, 0]
            )
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(self, batch: Batch, obs: Tensor, noise: Noise) -> Tensor:
        """Flow matching of the data's chunks, steps beyond the end of a trajectory left out. No value in it."""
        data = batch.actions.flatten(1)[:, None]
        error = ops.flow_matching(self.flow, obs, data, noise.flow, noise.time)
        return (error * ops.coordinates(batch.valid, self.chunk_dim)).mean()

    def start_online(self) -> None:
        """Nothing changes at the switch."""

    # ---- acting -------------------------------------------------------------------------------------------------

    def propose(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Chunks of the behaviour, [B, n, C] in [-1, 1], from as much noise."""
        return ops.euler(self.flow, obs, noise, self.cfg.flow_steps).clamp(-1, 1)

    def best(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """The chunk of highest mean value by the online critic per state, [B, n, C] -> [B, 1, C]."""
        return ops.top_k(chunks, self.critic.mean(obs, chunks), 1)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one of `act_samples` by its value."""
        obs = self.normalise(obs.to(self.device))
        noise = ops.normal(
            obs.shape[0],
            self.cfg.act_samples,
            self.chunk_dim,
            generator=generator,
            device=self.device,
        )
        chunks = self.propose(obs, noise)
        score, temperature = self.critic.mean(obs, chunks), self.cfg.act_temperature
        chunk = ops.choose(chunks, score, temperature=temperature, generator=generator)
        return chunk.reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        obs, count = self.normalise(batch.obs), max(diagnostics.SAMPLES, self.cfg.act_samples)
        noise = ops.normal(
            obs.shape[0], count, self.chunk_dim, generator=generator, device=self.device
        )
        chunks = ops.euler(self.flow, obs, noise, self.cfg.flow_steps)
        score = self.critic.mean(obs, chunks[:, : self.cfg.act_samples].clamp(-1, 1))
        log = diagnostics.against_data(chunks[:, : diagnostics.SAMPLES], batch)
        return log | diagnostics.executed(score, self.cfg.act_temperature)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "flow": self.flow,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }
