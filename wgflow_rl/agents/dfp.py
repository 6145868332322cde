"""Drifting Field Policy (Koo et al. 2026, Algorithm 1): a one-step policy that regresses on its own drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import wgflow as wg
from wgflow_rl.agents import diagnostics, drift, ops
from wgflow_rl.agents.networks import Policy, TwinCritic, slow_copy, standardiser
from wgflow_rl.agents.protocol import AgentConfig, above, at_least, fraction
from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class DFPConfig(AgentConfig):
    """Settings of DFP. Defaults are the paper's on OGBench (Table 5); tasks, variants and presets: `methods.py`.

    The paper does not give the dimension of the latent (f: R^k x S -> A, Eq. 9). Ours is that of the chunk.
    """

    generated: int = 8  # N_gen, samples per state that drift (Table 5)
    candidates: int = 16  # N, samples of the old policy per state (Eq. 15, Table 5)
    top_k: int = 4  # K, positives among them: 4 on OGBench, 2 on Robomimic (Sec. 5.1, Table 5)
    lam: float = 0.5  # lambda, weight of the top-K term online (Sec. 5.1, Table 5); 0 removes it
    # The same in the offline phase: 0 in offline-to-online training, where the offline columns of DFP with and without
    # the term are equal (Table 6); lambda in pure offline RL (B.2).
    lam_offline: float = 0.0
    target_samples: int = 1  # a' is the best of these; 1: a' ~ pi (Eq. 1). The released code: 16
    act_samples: int = 16  # N', the best of these is executed: 16; Robomimic 4 (Table 5)
    act_temperature: float = 0.0  # 0: the best (paper). Else one is drawn from softmax(Q / this)
    field: str = "eq3:0.05"  # drift of the behaviour-cloning term (Eq. 3; h in Table 5)
    improve_field: str = "eq3:0.05"  # drift of the top-K term, K positives per state (Eq. 16)
    positives: str = "topk"  # topk: the K best (Eq. 15); boltzmann: all N by exp(Q / temperature)
    temperature: float = 1.0  # alpha of pi+ = pi_old exp(Q / alpha) / Z, in units of Q
    old_rate: float = 1e-4  # tau_EMA, rate of the old policy that draws the candidates (Table 5)

    def check(self) -> None:
        super().check()
        drift.parse(self.field)
        drift.parse(self.improve_field)
        at_least(2, generated=self.generated)
        at_least(
            1, top_k=self.top_k, target_samples=self.target_samples, act_samples=self.act_samples
        )
        at_least(self.top_k, candidates=self.candidates)
        at_least(
            0, lam=self.lam, lam_offline=self.lam_offline, act_temperature=self.act_temperature
        )
        above(0, temperature=self.temperature)
        fraction(old_rate=self.old_rate)
        if self.positives not in ("topk", "boltzmann"):
            raise ValueError(f"--positives is {self.positives!r}; wanted topk or boltzmann")


class Noise(NamedTuple):
    """All the randomness of one update: standard normal, [B, n, C]."""

    generated: Tensor
    candidates: Tensor
    target: Tensor


class DFP:
    """Policy, twin critics, their slow copies, and one update of all of them.

    Args:
        cfg: the numbers of the method.
        obs_dim, action_dim: sizes of one observation and one action (actions in [-1, 1]).
        seed: of the initial weights.
        obs_mean, obs_std: [S], used when cfg.standardise.
    """

    def __init__(
        self,
        cfg: DFPConfig,
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
        self.data_drift = drift.parse(cfg.field)
        self.improve_drift = drift.parse(cfg.improve_field)
        generator = torch.Generator().manual_seed(seed)
        self.policy = Policy(obs_dim, self.chunk_dim, cfg.hidden, generator=generator).to(device)
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
        cfg = self.cfg
        return Noise(
            *(
                self._normal(batch, n, generator)
                for n in (cfg.generated, cfg.candidates, cfg.target_samples)
            )
        )

    def _normal(self, batch: int, n: int, generator: torch.Generator) -> Tensor:
        return ops.normal(batch, n, self.chunk_dim, generator=generator, device=self.device)

    # ---- Algorithm 1 --------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, noise: Noise, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic and actor; and scalars to log."""
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        critic_loss, critic_log = self.critic_loss(batch, obs, next_obs, noise)
        actor_loss, actor_log = self.actor_loss(
            batch, obs, noise, self.cfg.lam if online else self.cfg.lam_offline
        )
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
        """Chunked TD: (Q(s_t, a_{t:t+h}) - R_h - gamma^h Q_target(s_{t+h}, a'))^2 over chunks whose target is known."""
        with torch.no_grad():
            proposals = self.policy(next_obs, noise.target).clamp(-1, 1)
            best = self.best(next_obs, proposals)
            target = ops.td_target(
                batch.returns, batch.discount, self.target_critic.mean(next_obs, best)[:, 0]
            )
        return ops.critic_loss(self.critic, batch, obs, target)

    def actor_loss(
        self, batch: Batch, obs: Tensor, noise: Noise, lam: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_BC + lam L_topK, both regressions of the same generated chunks onto their own drift (Eq. 16)."""
        steps = ops.coordinates(batch.valid, self.chunk_dim)  # [B, 1, C]
        a_hat = self.policy(obs, noise.generated)  # [B, G, C], not clipped: the data draw it back
        data = batch.actions.flatten(1)[:, None] * steps
        with torch.no_grad():
            bc_velocity = self.data_drift(a_hat * steps, data)
        loss = wg.regress_onto(a_hat * steps, bc_velocity)
        log = {"bc_loss": loss.detach(), "clipped": (a_hat.detach().abs() > 1).float().mean()}
        if lam > 0:
            with torch.no_grad():
                pool = self.old_policy(obs, noise.candidates)  # [B, N, C]
                score = self.critic.mean(obs, pool.clamp(-1, 1))
                velocity = self.improve_drift(a_hat, *self.soft_target(pool, score))
            improve = wg.regress_onto(a_hat, velocity)
            loss = loss + lam * improve
            log["topk_loss"] = improve.detach()
        return loss, log

    def soft_target(self, pool: Tensor, score: Tensor) -> tuple[Tensor, Tensor | None]:
        """Positives and their weights: the K best uniformly (Eq. 15), or all of them by exp(Q / alpha), its pi+.

        The two are different targets: `matched_temperature` and `matched_tv` in train.csv say how far apart at best.
        """
        if self.cfg.positives == "topk":
            return ops.top_k(pool, score, self.cfg.top_k), None
        return pool, wg.boltzmann_weights(score, alpha=self.cfg.temperature)

    def start_online(self) -> None:
        """The offline-to-online switch: the old policy starts again from the present one."""
        self.old_policy.load_state_dict(self.policy.state_dict())

    # ---- acting -------------------------------------------------------------------------------------------------

    def best(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """The chunk of highest mean value by the online critic per state, [B, n, C] -> [B, 1, C]."""
        return (
            chunks if chunks.shape[1] == 1 else ops.top_k(chunks, self.critic.mean(obs, chunks), 1)
        )

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]: one of `act_samples` by its value."""
        cfg, obs = self.cfg, self.normalise(obs.to(self.device))
        chunks = self.policy(obs, self._normal(obs.shape[0], cfg.act_samples, generator)).clamp(
            -1, 1
        )
        score = self.critic.mean(obs, chunks)
        chunk = ops.choose(chunks, score, temperature=cfg.act_temperature, generator=generator)
        return chunk.reshape(obs.shape[0], cfg.chunk, -1)

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Beside what every agent has: rms of the field before scaling, and the candidates of the improvement term."""
        cfg, obs = self.cfg, self.normalise(batch.obs)
        a_hat = self.policy(obs, self._normal(obs.shape[0], cfg.generated, generator))
        whole = batch.valid[:, -1] > 0
        raw = self.data_drift.raw(a_hat[whole], batch.actions.flatten(1)[whole, None])
        log = {**diagnostics.against_data(a_hat, batch), "raw_field": raw.square().mean().sqrt()}
        pool = self.old_policy(obs, self._normal(obs.shape[0], cfg.candidates, generator)).clamp(
            -1, 1
        )
        log |= diagnostics.of_candidates(self.critic.mean(obs, pool), cfg.top_k)
        chunks = self.policy(obs, self._normal(obs.shape[0], cfg.act_samples, generator)).clamp(
            -1, 1
        )
        return log | diagnostics.executed(self.critic.mean(obs, chunks), cfg.act_temperature)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds, beside the optimiser."""
        return {
            "normalise": self.normalise,
            "policy": self.policy,
            "critic": self.critic,
            "old_policy": self.old_policy,
            "target_critic": self.target_critic,
        }
