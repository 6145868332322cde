"""Random draws, choices among samples, and samplers of flows and diffusions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[..., Tensor]  # (obs [B, S], x [B, G, C], *times [B, G, 1]) -> [B, G, C]


# ---- noise and candidates ----------------------------------------------------------------------


def normal(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal, drawn on the generator's device, so that a run draws the same numbers on any device."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def uniform(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform in [0, 1), drawn as `normal`."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def logit_normal(z: Tensor, mean: float, std: float) -> Tensor:
    """sigmoid(mean + std z) for standard normal z: a time in (0, 1)."""
    return (mean + std * z).sigmoid()


def top_k(items: Tensor, score: Tensor, k: int) -> Tensor:
    """The k items of highest score per state: {a_(1), ..., a_(K)} of DFP Eq. 15. [B, N, C], [B, N] -> [B, k, C]."""
    index = score.topk(k, dim=-1).indices[..., None]
    return items.gather(1, index.expand(-1, -1, items.shape[-1]))


def choose(
    items: Tensor, score: Tensor, *, temperature: float, generator: torch.Generator
) -> Tensor:
    """Draw one item per state with probability softmax(score / temperature); 0 takes the best. -> [B, 1, C].

    Of items drawn from pi, this draws from the soft improvement pi+ ~ pi exp(Q / temperature), self-normalised over N.
    """
    if temperature == 0:
        return top_k(items, score, 1)
    # The Gumbel-max trick.
    gumbel = -uniform(*score.shape, generator=generator, device=score.device).clamp(1e-9).log()
    return top_k(items, score / temperature - gumbel.clamp_min(1e-9).log(), 1)


# ---- flows and diffusions ----------------------------------------------------------------------


def euler(velocity: Field, obs: Tensor, x0: Tensor, steps: int) -> Tensor:
    """Integrate noise to actions: x <- x + v(s, x, i/M) / M, i = 0 ... M-1. [B, G, C], differentiable, not clipped."""
    x, t = x0, x0.new_zeros(*x0.shape[:-1], 1)
    for i in range(steps):
        x = x + velocity(obs, x, t + i / steps) / steps
    return x


def vp_noise(t: Tensor, low: float = 0.1, high: float = 20.0) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) of the variance-preserving process with beta linear from low to high (Song et al. 2021)."""
    log_alpha = -(high - low) * t.square() / 4 - low * t / 2
    return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


def ancestral(eps: Field, obs: Tensor, noise: Tensor) -> Tensor:
    """Sample the reversed diffusion in M steps, x_0 clipped to the box at each (Ho et al. 2020, Algorithm 2).

    noise [B, G, M, C]: the start, then what each step but the last adds. Returns [B, G, C].
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
    """Noise levels sigma_1 = low < ... < sigma_N = high, even in sigma^(1/rho) (Karras et al. 2022, Eq. 5). [N]"""
    a, b = low ** (1 / rho), high ** (1 / rho)
    return torch.tensor([(a + i / (levels - 1) * (b - a)) ** rho for i in range(levels)])
