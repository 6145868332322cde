"""Mean Velocity Policy (MVP, as the DFP paper compares with it): a one-step MeanFlow, the best of N executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wgflow_rl.agents import diagnostics, ops
from wgflow_rl.agents.networks import TwinCritic, VectorField, slow_copy, standardiser
from wgflow_rl.agents.protocol import AgentConfig, at_least, fraction
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class MVPConfig(AgentConfig):
    """Settings of MVP (Zhan et al. 2026) as DFP's Table 2 compares it; MVP with top-K has lam 0.5.

    Where neither paper gives a number it is that of DFP's released code, or our choice.
    """

    ivc: float = 1.0  # instantaneous velocity constraint (released code); 0 on cube-triple
    time_mean: float = -0.4  # r and t are sigmoid(N(time_mean, time_std)), sorted (released code)
    time_std: float = 1.0
    candidates: int = 16  # N, samples of the old policy per state, as DFP (A.2)
    top_k: int = 4  # K, positives among them, as DFP (A.2): 4 on OGBench, 2 on Robomimic
    lam: float = 0.0  # weight of the top-K term online; 0 is MVP itself
    old_rate: float = 1e-4  # EMA rate of the old policy that draws the candidates, as DFP
    # a' is the best of these by the critic. 1: a' ~ pi (Eq. 1, which A.2 says all methods share), so that the rows of
    # Table 2 have the same critic. The released code takes the best of 16.
    target_samples: int = 1
    act_samples: int = 16  # the executed chunk is the best of these (released code)
    act_temperature: float = 0.0  # 0: the best (paper). Else one is drawn from softmax(Q / this)

    def check(self) -> None:
        super().check()
        at_least(
            0,
            ivc=self.ivc,
            lam=self.lam,
            time_std=self.time_std,
            act_temperature=self.act_temperature,
        )
        at_least(
            1, top_k=self.top_k, target_samples=self.target_samples, act_samples=self.act_samples
        )
        at_least(self.top_k, candidates=self.candidates)
        fraction(old_rate=self.old_rate)


class Noise(NamedTuple):
    """All the randomness of one update: standard normal."""

    data: Tensor  # [B, 1, C] e of the behaviour term
    data_times: Tensor  # [B, 1, 2] r and t of it, before the sigmoid
    positives: Tensor  # [B, K, C] and [B, K, 2], the same for the top-K term
    positive_times: Tensor
    candidates: Tensor  # [B, N, C] draws of the old policy
    target: Tensor  # [B, M, C] proposals of a'


class MVP:
    """A mean velocity u, twin critics, their slow copies. Arguments: `methods.build`."""

    def __init__(
        self,
        cfg: MVPConfig,
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
        self.policy = VectorField(
            obs_dim, self.chunk_dim, cfg.hidden, generator=generator, times=2
        ).to(device)
        self.critic = TwinCritic(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(
            device
        )
        self.old_policy = slow_copy(self.policy)
        self.target_critic = slow_copy(self.critic)
        self.optimiser = torch.optim.Adam(
            [*self.policy.parameters(), *self.critic.parameters()], lr=cfg.lr, fused=True
        )
        self.normalise = standardiser(cfg.standardise, obs_dim, obs_mean, obs_std, device)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Noise:
        cfg, where = self.cfg, {"generator": generator, "device": self.device}
        return Noise(
            data=ops.normal(batch, 1, self.chunk_dim, **where),
            data_times=ops.normal(batch, 1, 2, **where),
            positives=ops.normal(batch, cfg.top_k, self.chunk_dim, **where),
            positive_times=ops.normal(batch, cfg.top_k, 2, **where),
            candidates=ops.normal(batch, cfg.candidates, self.chunk_dim, **where),
            target=ops.normal(batch, cfg.target_samples, self.chunk_dim, **where),
        )

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic and mean velocity; and scalars to log. The top-K term waits for `online`."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        critic_loss, critic_log = self.critic_loss(batch, obs, next_obs, noise)
        actor_loss, actor_log = self.actor_loss(batch, obs, noise, self.cfg.lam if online else 0.0)
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
        ops.polyak_(self.old_policy, self.policy, self.cfg.old_rate)

    def critic_loss(
        self, batch: Batch, obs: Tensor, next_obs: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2, a' the best of N by the online critic."""
        with torch.no_grad():
            best = self.best(
                next_obs, self.generate(self.policy, next_obs, noise.target).clamp(-1, 1)
            )
            target = ops.td_target(
                batch.returns, batch.discount, self.target_critic.mean(next_obs, best)[:, 0]
            )
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(
        self, batch: Batch, obs: Tensor, noise: Noise, lam: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_MF(data) + lam L_MF(top-K of the old policy's draws), the same regression of both (DFP Table 6)."""
        data, mask = batch.actions.flatten(1)[:, None], ops.coordinates(batch.valid, self.chunk_dim)
        loss = (self.mean_flow(obs, data, noise.data, noise.data_times) * mask).mean()
        log = {"bc_loss": loss.detach()}
        if lam > 0:
            with torch.no_grad():
                pool = self.generate(self.old_policy, obs, noise.candidates).clamp(
                    -1, 1
                )  # [B, N, C]
                best = ops.top_k(pool, self.critic.mean(obs, pool), self.cfg.top_k)
            improve = self.mean_flow(obs, best, noise.positives, noise.positive_times).mean()
            loss = loss + lam * improve
            log["topk_loss"] = improve.detach()
        return loss, log

    def mean_flow(self, obs: Tensor, actions: Tensor, e: Tensor, times: Tensor) -> Tensor:
        """MeanFlow identity and instantaneous velocity constraint, elementwise, [B, G, C].

        |u(z_t, r, t) - sg[v - (t - r) du/dt]|^2 + ivc |u(z_r, r, r) - v|^2 with v = e - a; the second says that a mean
        velocity over no time is the velocity. actions, e [B, G, C], times [B, G, 2] normal.
        """
        times = ops.logit_normal(times, self.cfg.time_mean, self.cfg.time_std).sort(-1).values
        r, t = times.split(1, -1)
        error = ops.mean_flow(self.policy, obs, actions, e, r, t)
        if self.cfg.ivc > 0:
            u = self.policy(obs, (1 - r) * actions + r * e, r, r)
            error = error + self.cfg.ivc * (u - (e - actions)).square()
        return error

    def start_online(self) -> None:
        """The offline-to-online switch: the old policy starts again from the present one."""
        self.old_policy.load_state_dict(self.policy.state_dict())

    # ---- acting -------------------------------------------------------------------------------------------------

    def generate(self, policy: VectorField, obs: Tensor, e: Tensor) -> Tensor:
        """a = e - u(e, 0, 1): from noise to chunk in one step, [B, n, C], not clipped."""
        zero = e.new_zeros(*e.shape[:-1], 1)
        return e - policy(obs, e, zero, zero + 1)

    def best(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """The chunk of highest mean value by the online critic per state, [B, n, C] -> [B, 1, C]."""
        return ops.top_k(chunks, self.critic.mean(obs, chunks), 1)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one of `act_samples` by its value."""
        obs = self.normalise(obs.to(self.device))
        e = ops.normal(
            obs.shape[0],
            self.cfg.act_samples,
            self.chunk_dim,
            generator=generator,
            device=self.device,
        )
        chunks = self.generate(self.policy, obs, e).clamp(-1, 1)
        score, temperature = self.critic.mean(obs, chunks), self.cfg.act_temperature
        chunk = ops.choose(chunks, score, temperature=temperature, generator=generator)
        return chunk.reshape(obs.shape[0], self.cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        cfg, obs = self.cfg, self.normalise(batch.obs)
        count = max(diagnostics.SAMPLES, cfg.act_samples)
        e = ops.normal(obs.shape[0], count, self.chunk_dim, generator=generator, device=self.device)
        chunks = self.generate(self.policy, obs, e)
        score = self.critic.mean(obs, chunks[:, : cfg.act_samples].clamp(-1, 1))
        log = diagnostics.against_data(chunks[:, : diagnostics.SAMPLES], batch)
        log |= diagnostics.executed(score, cfg.act_temperature)
        if cfg.lam > 0:
            e = ops.normal(
                obs.shape[0],
                cfg.candidates,
                self.chunk_dim,
                generator=generator,
                device=self.device,
            )
            pool = self.generate(self.old_policy, obs, e).clamp(-1, 1)
            log |= diagnostics.of_candidates(self.critic.mean(obs, pool), cfg.top_k)
        return log

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "critic": self.critic,
            "old_policy": self.old_policy,
            "target_critic": self.target_critic,
        }
