"""Behaviour cloning without values: by regression, by drifting, by flow matching and by MeanFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, fields, losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import DeterministicPolicy, MeanVelocityPolicy, Policy, VectorField
from wgflow_rl.agents.sampling import euler, logit_normal, normal, uniform
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import Count, NonNegative, Share, TwoOrMore

BANDWIDTH = 0.5  # of the density by which samples are chosen, as a fraction of their mean distance


@dataclass(frozen=True)
class CloningConfig(AgentConfig):
    """Settings of cloned policies that draw samples."""

    # The chunk of highest density among these is executed: near a mode of the policy, in one batch of the network.
    act_samples: Count = 1
    act_temperature: NonNegative = 0.0  # 0: the densest. Else one is drawn by density^(1 / this)


class Cloning(Agent):
    """A policy trained on the data's chunks alone; there is no critic."""

    def q(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """Log density of chunks under the Gaussian KDE of all chunks of their state, up to a constant, [B, n].

        The bandwidth is half their mean distance. Written out, because exported policies contain it; a test compares it
        with `wgflow.KDE`.
        """
        n = chunks.shape[1]
        sq = (chunks[:, :, None] - chunks[:, None]).square().sum(-1)
        h = BANDWIDTH * sq.sqrt().sum((1, 2), keepdim=True) / (n * (n - 1))
        return (-sq / (2 * h.square()).clamp_min(1e-12)).logsumexp(-1)

    def loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """The actor's loss alone."""
        batch = batch._replace(obs=self.normalise(batch.obs))
        loss, log = self.actor_loss(batch, noise, online=online)
        return loss, {"actor_loss": loss.detach(), **log}

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> Log:
        """Compare with the data; there are no values to report."""
        obs = self.normalise(batch.obs)
        latent = self.draw_latent(obs, diagnostics.SAMPLES, generator)
        with self.averaged():
            return diagnostics.compare_with_data(self.sample(obs, latent), batch)


# ---- regression --------------------------------------------------------------------------------


@dataclass(frozen=True)
class BCConfig(AgentConfig):
    """Settings of behaviour cloning by regression, chunks of one action."""

    chunk: int = 1


class BC(Cloning):
    """Deterministic policy: the mean of a Gaussian of fixed width, by least squares."""

    cfg: BCConfig

    def setup(self, generator: torch.Generator) -> None:
        self.policy = DeterministicPolicy(*self.sizes, generator=generator)
        self.latent = None

    def sample(self, obs: Tensor, noise: None) -> Tensor:
        return self.policy(obs)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """|a - mu(s)|^2, which is -log N(a; mu(s), 1) up to constants: two modes are answered by their mean."""
        error = (self.policy(batch.obs) - batch.chunk).square()
        return (error * batch.mask).mean(), {}


# ---- drifting ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DriftBCConfig(CloningConfig):
    """Settings of cloning by a drifting field: DFP's first term alone (Eq. 18), with one positive per state."""

    field: str = "energy:0.5"  # V; `energy` is the energy score of Energy Policy (arXiv:2510.12483)
    generated: TwoOrMore = 8  # N_gen, samples per state that drift

    def check(self) -> None:
        super().check()
        fields.parse(self.field)


class DriftBC(Cloning):
    """Pushforward policy a = f(z, s) that regresses its samples onto their drift towards the data's chunk."""

    cfg: DriftBCConfig

    def setup(self, generator: torch.Generator) -> None:
        self.policy = Policy(*self.sizes, generator=generator)
        self.field = fields.parse(self.cfg.field)
        self.noise = {"generated": (normal, self.cfg.generated, self.chunk_dim)}

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy(obs, noise)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L_BC (DFP Eq. 18) alone."""
        a_hat = self.policy(batch.obs, noise.generated)  # [B, G, C]
        return losses.drift_loss(self.field, a_hat, batch), {}


# ---- flows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowBCConfig(CloningConfig):
    """Settings of cloning by flow matching (Lipman et al. 2023)."""

    flow_steps: Count = 10  # Euler steps from noise to chunk
    generated: Count = 1  # pairs of noise and time per chunk of the data


class FlowBC(Cloning):
    """Flow from noise to chunks, in `flow_steps` evaluations of the network."""

    cfg: FlowBCConfig
    acts = "flow"

    def setup(self, generator: torch.Generator) -> None:
        G = self.cfg.generated
        self.flow = VectorField(*self.sizes, generator=generator)
        self.noise = {"x0": (normal, G, self.chunk_dim), "time": (uniform, G, 1)}

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return euler(self.flow, obs, noise, self.cfg.flow_steps)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """Flow matching of the data's chunks, without steps after the end of a trajectory."""
        error = losses.flow_matching(self.flow, batch.obs, batch.chunk, noise.x0, noise.time)
        return (error * batch.mask).mean(), {}


@dataclass(frozen=True)
class MeanFlowBCConfig(CloningConfig):
    """Settings of cloning by MeanFlow (Geng et al. 2025), with the times of DFP's published MVP."""

    time_mean: float = -0.4  # r and t are sigmoid(N(time_mean, time_std)), sorted
    time_std: NonNegative = 1.0
    # share of pairs with r = t, which is flow matching (Geng et al., Table 1a)
    same_times: Share = 0.5
    generated: Count = 1  # triples of noise and times per chunk of the data


class MeanFlowBC(Cloning):
    """One-step policy a = e - u(s, e, 0, 1), trained by the MeanFlow identity."""

    cfg: MeanFlowBCConfig

    def setup(self, generator: torch.Generator) -> None:
        G = self.cfg.generated
        self.policy = MeanVelocityPolicy(*self.sizes, generator=generator)
        self.noise = {
            "e": (normal, G, self.chunk_dim),
            "times": (normal, G, 2),  # r and t, before the sigmoid
            "same": (uniform, G, 1),
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy(obs, noise)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """MeanFlow identity at the data's chunks, without steps after the end of a trajectory."""
        cfg = self.cfg
        r, t = logit_normal(noise.times, cfg.time_mean, cfg.time_std).sort(-1).values.split(1, -1)
        r = torch.where(noise.same < cfg.same_times, t, r)
        error = losses.mean_flow(self.policy.u, batch.obs, batch.chunk, noise.e, r, t)
        return (error * batch.mask).mean(), {}
