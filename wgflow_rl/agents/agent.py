"""The base class of all methods: everything they have in common, and what the training loop calls."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wgflow_rl.agents import diagnostics, losses
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.networks import CriticEnsemble, Standardise
from wgflow_rl.agents.sampling import choose, normal, top_k
from wgflow_rl.data.batch import Batch

M = TypeVar("M", bound=nn.Module)
Log = dict[str, Tensor]  # scalars without gradient


class Agent(nn.Module):
    """Optimiser, target networks, noise, best-of-N acting and diagnostics of a method.

    A method declares its networks and its noise in `setup`, turns noise into chunks in `sample`, and states its
    `actor_loss`. The critic is the one of Q-chunking unless `critic_loss` is overridden. The training loop calls
    `draw_noise`, `loss`, `update_targets`, `act`, `diagnose`, `start_online` and `anneal`; `state_dict()` and the
    state of `optimiser` are all that a checkpoint needs.

    An update is a function of weights, batch and noise, which is drawn before it, so it repeats exactly.

    Args:
        cfg: settings of the method.
        obs_dim: size of an observation.
        action_dim: size of an action; actions lie in [-1, 1].
        seed: of the initial weights.
        obs_mean: [S] mean of the data's observations, used if cfg.standardise.
        obs_std: [S] their standard deviation.
        device: where weights live.
    """

    average_updates: Tensor  # number of updates that the average has seen
    critic: CriticEnsemble
    target_critic: CriticEnsemble
    acts = "policy"  # name of the network that acts, of which cfg.average keeps an average

    def __init__(
        self,
        cfg: AgentConfig,
        *,
        obs_dim: int,
        action_dim: int,
        seed: int = 0,
        obs_mean: Tensor | None = None,
        obs_std: Tensor | None = None,
        device: str | torch.device = "cpu",
    ):
        super().__init__()
        self.cfg: Any = cfg
        self.obs_dim, self.chunk_dim = obs_dim, cfg.predicted * action_dim  # S, C
        self.sizes = (obs_dim, self.chunk_dim, cfg.hidden, cfg.trunk)
        self.critic_sizes = (obs_dim, cfg.chunk * action_dim, cfg.hidden)  # values executed actions
        self.latent: tuple[int, ...] | None = (self.chunk_dim,)  # noise per chunk; None: no noise
        self.noise: dict[str, tuple[Any, ...]] = {}
        self._targets: list[tuple[nn.Module, nn.Module, float]] = []
        if not cfg.standardise or obs_mean is None or obs_std is None:
            obs_mean, obs_std = torch.zeros(obs_dim), torch.ones(obs_dim)
        self.normalise = Standardise(obs_mean, obs_std)
        self.setup(torch.Generator().manual_seed(seed))
        if cfg.average:
            self.average = copy.deepcopy(getattr(self, self.acts)).requires_grad_(False)
            self.register_buffer("average_updates", torch.zeros(()))
        self._noise_type = namedtuple("Noise", self.noise)  # type: ignore[misc]
        self.to(device)
        optimiser = torch.optim.AdamW if cfg.weight_decay else torch.optim.Adam
        self.optimiser = optimiser(
            [p for p in self.parameters() if p.requires_grad],
            lr=cfg.lr,
            weight_decay=cfg.weight_decay,
            fused=True,
        )

    # ---- what a method declares ----------------------------------------------------------------

    def setup(self, generator: torch.Generator) -> None:
        """Declare networks (weights drawn from `generator`), target networks, `noise` and `latent`.

        `noise` maps the name of each draw of an update to `(distribution, *shape per state)`, for example
        {"target": (normal, 16, C), "time": (uniform, 1, 1)}. `latent` is the shape of the noise behind one chunk.
        """
        raise NotImplementedError

    def sample(self, obs: Tensor, noise: Any) -> Tensor:
        """Chunks of the policy, [B, n, C], not clipped. noise `[B, n, *latent]`, None without `latent`."""
        raise NotImplementedError

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """Loss of everything that is not a value function, and scalars to log. Observations are normalised."""
        raise NotImplementedError

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Log]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2, chunked TD (Li et al. 2025; DFP Eq. 1).

        a' is the best of the chunks sampled with `noise.target`, ranked by the online critic.
        """
        with torch.no_grad():
            chunks = self.sample(batch.next_obs, noise.target).clamp(-1, 1)
            if chunks.shape[1] > 1:
                chunks = top_k(chunks, self.q(batch.next_obs, chunks), 1)
            value = self.target_critic.mean(batch.next_obs, chunks)[:, 0]
        return losses.td_loss(self.critic, batch, value)

    def q(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """Values by which chunks are ranked, [B, n]: the mean of the online critics."""
        return self.critic.mean(obs, chunks)

    def target_network(self, module: M, *, rate: float) -> M:
        """A copy that follows `module` at `rate` per update, and never a gradient."""
        target = copy.deepcopy(module).requires_grad_(False)
        self._targets.append((target, module, rate))
        return target

    # ---- what the training loop calls ----------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.normalise.mean.device

    def draw_noise(self, batch: int, generator: torch.Generator) -> Any:
        """Draw all the randomness of one update of `batch` rows, as a named tuple with the names of `noise`."""
        return self._noise_type(
            *(
                draw(batch, *shape, generator=generator, device=self.device)
                for draw, *shape in self.noise.values()
            )
        )

    def loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """The scalar that an update descends, and scalars to log; those called `*_loss` must stay finite."""
        batch = batch._replace(
            obs=self.normalise(batch.obs), next_obs=self.normalise(batch.next_obs)
        )
        critic_loss, critic_log = self.critic_loss(batch, noise)
        actor_loss, actor_log = self.actor_loss(batch, noise, online=online)
        log = {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}
        return critic_loss + actor_loss, log | critic_log | actor_log

    @torch.no_grad()
    def update_targets(self) -> None:
        """target <- (1 - rate) target + rate online, after each optimiser step."""
        for target, online, rate in self._targets:
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
        if self.cfg.average:
            # An average over the last tenth of all updates at first, so that the initial weights leave no trace.
            self.average_updates += 1
            share = (9 / (self.average_updates + 10)).clamp_min(1 - self.cfg.average)
            trained = getattr(self, self.acts)
            for mean, weight in zip(self.average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(weight, share)

    def anneal(self, progress: float, *, online: bool = True) -> None:
        """Set the learning rate for the fraction `progress` of a phase.

        Online it is linear, lr (1 - progress (1 - lr_end)); offline a half cosine from lr to lr lr_end_offline.
        """
        cfg = self.cfg
        if online:
            share = 1 - progress * (1 - cfg.lr_end)
        else:
            share = 1 - (1 - math.cos(math.pi * progress)) / 2 * (1 - cfg.lr_end_offline)
        for group in self.optimiser.param_groups:
            group["lr"] = cfg.lr * share

    def start_online(self) -> None:
        """Prepare for the online phase; called once, before its first environment step."""

    @property
    def act_samples(self) -> int:
        """N of best-of-N acting; 1 for methods without that setting."""
        return getattr(self.cfg, "act_samples", 1)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Choose the actions to execute, [B, h, A] in [-1, 1], for obs [B, S]: of the best of `act_samples` chunks.

        `wgflow_rl.export` traces this with one B: draw only with `sampling.normal` and `sampling.uniform`.
        """
        obs = self.normalise(obs.to(self.device))
        latent = self.draw_latent(obs, self.act_samples, generator)
        with self.averaged():
            chunks = self.sample(obs, latent).clamp(-1, 1)
        if self.act_samples > 1:  # an exported policy of one sample needs no critic
            score, temperature = self.q(obs, chunks), self.cfg.act_temperature
            chunks = choose(chunks, score, temperature=temperature, generator=generator)
        return chunks.reshape(obs.shape[0], self.cfg.predicted, -1)[:, : self.cfg.chunk]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the average over the updates act inside the block, if cfg.average is set."""
        if not self.cfg.average:
            yield
            return
        trained = getattr(self, self.acts)
        setattr(self, self.acts, self.average)
        try:
            yield
        finally:
            setattr(self, self.acts, trained)

    def draw_latent(self, obs: Tensor, n: int, generator: torch.Generator) -> Tensor | None:
        """Draw the noise behind n chunks per state, `[B, n, *latent]`."""
        if self.latent is None:
            return None
        return normal(obs.shape[0], n, *self.latent, generator=generator, device=self.device)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> Log:
        """Measure on held-out chunks what the losses hide; too slow for every update."""
        obs, n = self.normalise(batch.obs), self.act_samples
        latent = self.draw_latent(obs, max(diagnostics.SAMPLES, n), generator)
        with self.averaged():
            chunks = self.sample(obs, latent)
        score = self.q(obs, chunks[:, :n].clamp(-1, 1))
        log = diagnostics.compare_with_data(chunks[:, : diagnostics.SAMPLES], batch)
        return log | diagnostics.executed(score, getattr(self.cfg, "act_temperature", 0.0))
