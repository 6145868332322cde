"""Drifting Field Policy (Koo et al. 2026, Algorithm 1): a one-step policy trained by regression onto its drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import wgflow as wg
from wgflow_rl.agents import diagnostics, fields, losses
from wgflow_rl.agents.agent import Agent, Log
from wgflow_rl.agents.config import TopKConfig
from wgflow_rl.agents.networks import Policy, TwinCritic, frozen
from wgflow_rl.agents.sampling import normal, top_k
from wgflow_rl.data.batch import Batch
from wgflow_rl.utils.flags import NonNegative, Positive, TwoOrMore


@dataclass(frozen=True)
class DFPConfig(TopKConfig):
    """Settings of DFP. Defaults are the paper's on OGBench (Table 5); tasks, variants and presets: `presets.py`.

    The paper does not give the dimension of the latent (f: R^k x S -> A, Eq. 9). Ours is that of the chunk.
    """

    field: str = "drifting:0.05"  # V of the behaviour-cloning term (Eq. 3; h in Table 5)
    improve_field: str = "drifting:0.05"  # V of the top-K term, K positives per state (Eq. 16)
    generated: TwoOrMore = 8  # N_gen, samples per state that drift (Table 5)
    lam: NonNegative = 0.5  # lambda, weight of the top-K term online (Sec. 5.1, Table 5); 0: none
    # The same in the offline phase: 0 in offline-to-online training, where the offline columns of DFP with and without
    # the term are equal (Table 6); lambda in pure offline RL (B.2).
    lam_offline: NonNegative = 0.0
    # topk: the K best (Eq. 15); boltzmann: all N by exp(Q / temperature); matched: the same at the temperature of
    # each state whose weights are nearest to the uniform top-K
    positives: str = "topk"
    temperature: Positive = 1.0  # alpha of pi+ = pi_old exp(Q / alpha) / Z, in units of Q
    # weight of a second field whose negatives are the K worst candidates; not in the paper
    repulsion: NonNegative = 0.0
    # weight of -mean Q / mean |Q| in the online loss, as in TD3+BC; not in the paper
    q_weight: NonNegative = 0.0
    q_weight_offline: NonNegative = 0.0  # the same in the offline phase

    @property
    def online_only(self) -> frozenset[str]:
        if type(self) is not DFPConfig:
            return frozenset()
        names = frozenset({"lr_end", "lam", "q_weight"})
        if self.lam_offline > 0:
            return names
        return names | {
            "improve_field",
            "positives",
            "temperature",
            "repulsion",
            "top_k",
            "old_rate",
        }

    def check(self) -> None:
        super().check()
        fields.parse(self.field)
        fields.parse(self.improve_field)
        if self.repulsion:
            if not self.lam and not self.lam_offline:
                raise ValueError(
                    f"--repulsion is {self.repulsion} and --lam is 0, so there is no top-K term to add it to; wanted "
                    "--lam 0.5, or no --repulsion"
                )
            require_negatives(self.improve_field)
            if self.positives != "topk" or self.candidates < 2 * self.top_k:
                raise ValueError(
                    f"--repulsion came with --positives {self.positives}, --candidates {self.candidates}, --top-k "
                    f"{self.top_k}; wanted topk and at least 2 K candidates, the best and the worst"
                )
        if self.positives not in ("topk", "boltzmann", "matched"):
            raise ValueError(
                f"--positives is {self.positives!r}; wanted topk, boltzmann or matched"
            )


def require_negatives(name: str) -> None:
    """Raises: ValueError if the field takes no negatives other than its points."""
    x = torch.tensor([[0.0], [1.0]])
    try:
        fields.parse(name)(x, x, neg=x)
    except ValueError as error:
        raise ValueError(
            f"--repulsion needs a field with negatives, but --improve-field is {name!r}; wanted for example "
            "--improve-field energy:0.5"
        ) from error


class DFP(Agent):
    """Pushforward policy a = f(z, s), trained on the field at its own samples; the critic is `Agent.critic_loss`."""

    cfg: DFPConfig

    def setup(self, generator: torch.Generator) -> None:
        cfg, C = self.cfg, self.chunk_dim
        self.policy = Policy(*self.sizes, generator=generator)
        self.critic = TwinCritic(*self.critic_sizes, generator=generator)
        self.old_policy = self.target_network(self.policy, rate=cfg.old_rate)
        self.target_critic = self.target_network(self.critic, rate=cfg.target_rate)
        self.field = fields.parse(cfg.field)
        self.improve_field = fields.parse(cfg.improve_field)
        self.noise = {
            "generated": (normal, cfg.generated, C),
            "candidates": (normal, cfg.candidates, C),  # noise of the old policy
            "target": (normal, cfg.target_samples, C),  # noise of a'
        }

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.policy(obs, noise)

    def actor_loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, Log]:
        """L_BC + lam L_topK (Eqs. 18 and 16): samples a_hat regress onto a_hat + V, V towards the data and the top-K.

        Samples are not clipped.
        """
        a_hat = self.policy(batch.obs, noise.generated)  # [B, G, C]
        loss = losses.drift_loss(self.field, a_hat, batch)
        log = {"bc_loss": loss.detach(), "clipped": (a_hat.detach().abs() > 1).float().mean()}
        lam = self.cfg.lam if online else self.cfg.lam_offline
        if lam > 0:
            with torch.no_grad():
                pool = self.old_policy(batch.obs, noise.candidates)  # [B, N, C]
                q = self.q(batch.obs, pool.clamp(-1, 1))
                best, weights = self.positives(pool, q)
                V = self.improve_field(a_hat, best, pos_weights=weights)
                if self.cfg.repulsion:
                    worst = top_k(pool, -q, self.cfg.top_k)
                    away = self.improve_field(a_hat, best, neg=worst, pos_weights=weights)
                    V = V + self.cfg.repulsion * away
            improve = wg.regress_onto(a_hat, V)
            loss = loss + lam * improve
            log["topk_loss"] = improve.detach()
        q_weight = self.cfg.q_weight if online else self.cfg.q_weight_offline
        if q_weight > 0:
            q = frozen(self.critic)(batch.obs, a_hat.clamp(-1, 1)).mean(0)
            loss = loss - q_weight * losses.value_scale(q) * q.mean()
            log["q_policy"] = q.detach().mean()
        return loss, log

    def positives(self, pool: Tensor, q: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose positives and their weights: the K best, uniformly (Eq. 15), or all N by exp(Q / alpha), which is pi+.

        The two targets differ: `matched_temperature` and `matched_tv` in train.csv measure the least difference.
        """
        cfg = self.cfg
        if cfg.positives == "topk":
            return top_k(pool, q, cfg.top_k), None
        if cfg.positives == "boltzmann":
            return pool, wg.boltzmann_weights(q, alpha=cfg.temperature)
        alpha, _ = wg.matched_temperature(q, k=cfg.top_k)
        return pool, wg.boltzmann_weights(q, alpha=alpha)

    def start_online(self) -> None:
        """Copy the current policy to the old one."""
        self.old_policy.load_state_dict(self.policy.state_dict())

    @torch.no_grad()
    def diagnose(self, batch: Batch, generator: torch.Generator) -> Log:
        """Add the rms of the unnormalised field and the values of the candidates."""
        log, obs = super().diagnose(batch, generator), self.normalise(batch.obs)
        a_hat = self.policy(obs, self.draw_latent(obs, self.cfg.generated, generator))
        whole = batch.valid[:, -1] > 0
        raw = fields.unnormalized(self.field)(a_hat[whole], batch.chunk[whole])
        pool = self.old_policy(obs, self.draw_latent(obs, self.cfg.candidates, generator))
        log |= diagnostics.candidates(self.q(obs, pool.clamp(-1, 1)), self.cfg.top_k)
        return log | {"raw_field": raw.square().mean().sqrt()}
