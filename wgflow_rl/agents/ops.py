"""One-equation functions shared by the agents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wgflow_rl.data.batch import Batch

Module = Callable[..., Tensor]
Field = Callable[..., Tensor]  # (obs [B, S], x [B, G, C], *times) -> [B, G, C]


# ---- noise and candidates ----------------------------------------------------------------------------------------


def normal(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal, drawn where the generator lives, so that a run draws the same numbers on any device."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def uniform(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform in [0, 1), as `normal`."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def take(items: Tensor, index: Tensor) -> Tensor:
    """items [B, N, C], index [B, K] -> the chosen rows [B, K, C]."""
    return items.gather(1, index[..., None].expand(-1, -1, items.shape[-1]))


def top_k(items: Tensor, score: Tensor, k: int) -> Tensor:
    """The k items of highest score per state: {a_(1), ..., a_(K)} of DFP Eq. 15. [B, N, C], [B, N] -> [B, k, C]."""
    return take(items, score.topk(k, dim=-1).indices)


def choose(
    items: Tensor, score: Tensor, *, temperature: float, generator: torch.Generator
) -> Tensor:
    """One item per state, drawn with probability softmax(score / temperature); 0 takes the best. -> [B, 1, C].

    Items drawn from pi make this a draw of the soft improvement pi+ ~ pi exp(Q / temperature), self-normalised over N.
    """
    if items.shape[1] == 1:
        return items  # and an exported policy of one proposal needs no critic
    if temperature == 0:
        return top_k(items, score, 1)
    gumbel = -uniform(*score.shape, generator=generator, device=score.device).clamp(1e-9).log()
    return top_k(
        items, score / temperature - gumbel.clamp_min(1e-9).log(), 1
    )  # the Gumbel-max trick


def coordinates(valid: Tensor, chunk_dim: int) -> Tensor:
    """Steps to coordinates: valid [B, h] -> [B, 1, C], 1 where a coordinate belongs to its trajectory."""
    return valid.repeat_interleave(chunk_dim // valid.shape[1], dim=1)[:, None]


# ---- values ------------------------------------------------------------------------------------------------------


def td_target(returns: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = R_h + gamma^h m_h Q(s_{t+h}, a'), where `discount` is gamma^h m_h and is 0 where the task ended. All [B]."""
    return returns + discount * next_value


def td_loss(q: Tensor, target: Tensor, complete: Tensor) -> Tensor:
    """mean (Q_i(s, a) - y)^2 over both critics, over chunks whose target is known. q [2, B], target, complete [B]."""
    return ((q - target.detach()).square() * complete).mean()


def critic_loss(
    critic: Module, batch: Batch, obs: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Chunked TD, `td_loss` of Q(s_t, a_{t:t+h}) on the data's chunks, and what to log of it. target [B]."""
    q = critic(obs, batch.actions.flatten(1)[:, None])[..., 0]  # [2, B]
    return td_loss(q, target, batch.complete), {"q": q.detach().mean(), "td_target": target.mean()}


def expectile_loss(error: Tensor, tau: float) -> Tensor:
    """|tau - 1(u < 0)| u^2, elementwise: least at the tau-expectile (IQL, Kostrikov et al. 2021, Eq. 5)."""
    return torch.where(error < 0, 1 - tau, tau) * error.square()


def implicit_value_loss(
    value: Module, target_critic: Module, batch: Batch, obs: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Expectile of min Q_target(s, a) over the data's actions, V's loss (IQL Eq. 5); and the advantage [B]."""
    with torch.no_grad():
        q = target_critic(obs, batch.actions.flatten(1)[:, None]).amin(0)[:, 0]
    v = value(obs)[:, 0, 0]
    return (expectile_loss(q - v, tau) * batch.complete).mean(), (q - v).detach()


def implicit_critic_loss(
    critic: Module, value: Module, batch: Batch, obs: Tensor, next_obs: Tensor
) -> Tensor:
    """(Q(s_t, a_{t:t+h}) - R_h - gamma^h V(s_{t+h}))^2: only actions of the data are asked for (IQL Eq. 6)."""
    with torch.no_grad():
        target = td_target(batch.returns, batch.discount, value(next_obs)[:, 0, 0])
    return critic_loss(critic, batch, obs, target)[0]


def advantage_weight(advantage: Tensor, alpha: float, most: float = 100.0) -> Tensor:
    """min(exp(alpha A), most): the weight of advantage-weighted regression (IQL Eq. 7; the cap is its code's)."""
    return (alpha * advantage).exp().clamp(max=most)


def energy_score(samples: Tensor, y: Tensor) -> Tensor:
    """E|x - y| - E|x - x'| / 2 per state (Gneiting and Raftery 2007), unbiased in the samples: lower is better.

    samples [B, G, C] with G >= 2, y [B, C] -> [B], in the units of y. Strictly proper: its mean over (s, y) is
    least when the samples have the distribution of y given s.
    """
    g = samples.shape[1]
    to_data = (samples - y[:, None]).norm(dim=-1).mean(-1)
    # Direct differences: the matrix product that cdist prefers above 25 points leaves the diagonal above 0.
    pairs = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    between = pairs.sum((-2, -1)) / (g * (g - 1))
    return to_data - between / 2


# ---- flows -------------------------------------------------------------------------------------------------------


def flow_matching(velocity: Field, obs: Tensor, actions: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """(v(s, x_t, t) - (a - x_0))^2 with x_t = (1 - t) x_0 + t a (FQL, Park et al. 2025, Eq. 1), not yet averaged.

    actions, x0 [B, G, C]; t [B, G, 1] -> [B, G, C]. Noise is at t = 0, actions are at t = 1.
    """
    return (velocity(obs, (1 - t) * x0 + t * actions, t) - (actions - x0)).square()


def euler(velocity: Field, obs: Tensor, x0: Tensor, steps: int) -> Tensor:
    """Carry noise to actions: x <- x + v(s, x, i/M) / M for i = 0 ... M-1. [B, G, C], differentiable, not clipped."""
    x, t = x0, x0.new_zeros(*x0.shape[:-1], 1)
    for i in range(steps):
        x = x + velocity(obs, x, t + i / steps) / steps
    return x


def mean_flow(
    field: Field, obs: Tensor, actions: Tensor, e: Tensor, r: Tensor, t: Tensor
) -> Tensor:
    """(u(z_t, r, t) - sg[v - (t - r) du/dt])^2, the MeanFlow identity (Geng et al. 2025, Eq. 6 and 10), not averaged.

    z_t = (1 - t) a + t e, v = e - a; du/dt = v d_z u + d_t u by forward-mode differentiation. Here noise is at t = 1.
    actions, e [B, G, C]; 0 <= r <= t <= 1, [B, G, 1]. Gradient through u alone.
    """
    z, v = (1 - t) * actions + t * e, e - actions
    u, du_dt, *_ = torch.func.jvp(
        lambda z, r, t: field(obs, z, r, t), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    )
    return (u - (v - (t - r) * du_dt).detach()).square()


# ---- diffusion ---------------------------------------------------------------------------------------------------


def vp_noise(t: Tensor, low: float = 0.1, high: float = 20.0) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) of the variance-preserving process with beta linear from low to high (Song et al. 2021)."""
    log_alpha = -(high - low) * t.square() / 4 - low * t / 2
    return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


def noise_prediction(eps: Field, obs: Tensor, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(eps(s, alpha_t a + sigma_t e, t) - e)^2 (Ho et al. 2020, Eq. 14), not yet averaged. actions, noise [B, G, C]."""
    alpha, sigma = vp_noise(t)
    return (eps(obs, alpha * actions + sigma * noise, t) - noise).square()


def ancestral(eps: Field, obs: Tensor, noise: Tensor) -> Tensor:
    """Sample the reversed process in M steps, x_0 clipped to the box at each (Ho et al. 2020, Algorithm 2).

    noise [B, G, M, C]: the start, then what each of the steps but the last adds. Returns [B, G, C].
    """
    x, steps = noise[..., 0, :], noise.shape[-2]
    t = x.new_ones(*x.shape[:-1], 1)
    for i in range(steps, 0, -1):
        alpha, sigma = vp_noise(t * i / steps)
        alpha_, sigma_ = vp_noise(t * (i - 1) / steps)
        x0 = ((x - sigma * eps(obs, x, t * i / steps)) / alpha.clamp_min(1e-6)).clamp(-1, 1)
        ratio = alpha / alpha_
        kept = (1 - ratio.square()) / sigma.square()  # 1 - alpha_{t|s}^2 over sigma_t^2
        x = ratio * sigma_.square() / sigma.square() * x + alpha_ * kept * x0
        if i > 1:
            x = x + sigma_ * kept.sqrt() * noise[..., steps - i + 1, :]
    return x


def karras_levels(levels: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """sigma_1 = low < ... < sigma_N = high, even in sigma^(1/rho) (Karras et al. 2022, Eq. 5). [N]"""
    a, b = low ** (1 / rho), high ** (1 / rho)
    return torch.tensor([(a + i / (levels - 1) * (b - a)) ** rho for i in range(levels)])


# ---- parameters --------------------------------------------------------------------------------------------------


@torch.no_grad()
def polyak_(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online, in place."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step. Parameters that the loss does not reach stay, moments included."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def anneal_(optimiser: torch.optim.Optimizer, lr: float, end: float, progress: float) -> None:
    """lr (1 - progress (1 - end)): linear from lr to end * lr."""
    now = lr * (1 - progress * (1 - end))
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):  # one that a CUDA graph reads
            group["lr"].fill_(now)
        else:
            group["lr"] = now


def logit_normal(z: Tensor, mean: float, std: float) -> Tensor:
    """sigmoid(mean + std z) for standard normal z: a time in (0, 1)."""
    return (mean + std * z).sigmoid()


def value_scale(q: Tensor) -> Tensor:
    """1 / mean |Q|, the factor that makes a value loss free of the reward's units (TD3+BC, Fujimoto and Gu 2021)."""
    return 1 / q.detach().abs().mean().clamp_min(1e-6)
