"""One-equation functions shared by the agents."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def take(items: Tensor, index: Tensor) -> Tensor:
    """items [B, N, C], index [B, K] -> the chosen rows [B, K, C]."""
    return items.gather(1, index[..., None].expand(-1, -1, items.shape[-1]))


def top_k(items: Tensor, score: Tensor, k: int) -> Tensor:
    """The k items of highest score per state: {a_(1), ..., a_(K)} of DFP Eq. 15. [B, N, C], [B, N] -> [B, k, C]."""
    return take(items, score.topk(k, dim=-1).indices)


def td_target(returns: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = R_h + gamma^h m_h Q(s_{t+h}, a'), where `discount` is gamma^h m_h and is 0 where the task ended. All [B]."""
    return returns + discount * next_value


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


@torch.no_grad()
def polyak_(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online, in place."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
