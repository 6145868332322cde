"""Helpers of radial kernels: sphere areas, singular logarithms, and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.arguments import draw_device
from wgflow.distances import may_differentiate


def log_sphere_area(dim: int) -> float:
    """Log of the area of the unit sphere in `dim` dimensions: log 2 π^(D/2) / Γ(D/2)."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


def safe_sq(sq: Tensor) -> Tensor:
    # Under autograd a masked infinity still gives 0 * inf = NaN, so zeros are replaced before the function, not after.
    return torch.where(sq == 0, 1.0, sq) if may_differentiate(sq) else sq


def normal_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals shaped as `like`."""
    device = draw_device(generator, like.device)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like)


def direction(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.nn.functional.normalize(normal_noise(like, generator), dim=-1)


def exponential_noise(like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """[..., count] unit exponentials: a sum of k of them is Gamma(k)."""
    shape = (*like.shape[:-1], count)
    device = draw_device(generator, like.device)
    uniform = torch.rand(shape, generator=generator, dtype=like.dtype, device=device)
    return -uniform.neg().log1p().to(like)


def without_coincident(log: Tensor, sq: Tensor) -> Tensor:
    """The logarithm of a singular kernel, with -inf in place of the infinity at sq = 0: those samples do not count."""
    if may_differentiate(sq):
        return log.masked_fill(sq == 0, -math.inf)
    # A comparison and a mask take ten times as long on a CPU.
    return log.nan_to_num_(nan=math.nan, posinf=-math.inf, neginf=-math.inf)
