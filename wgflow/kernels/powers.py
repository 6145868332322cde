"""Kernels with power-law tails: a far point still feels every sample. Slopes and shadows change the exponent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.kernels.kernel import Kernel, Scaled, check_bandwidth
from wgflow.kernels.radial import normal_noise, safe_sq


@checked_constructor
@dataclass(frozen=True)
class RationalQuadratic(Kernel):
    r"""k = (1 + r²/scale²)^-beta: heavy tails, so a far point still feels every sample. Shadow: exponent 1 - beta."""

    scale: float  # a length
    beta: float = 1.0

    def __post_init__(self):
        check_bandwidth("scale", self.scale)
        check_bandwidth("beta", self.beta)

    def log(self, sq: Tensor) -> Tensor:
        return (sq / self.scale**2).log1p() * -self.beta

    def log_norm(self, dim: int) -> float | None:
        if self.beta <= dim / 2:
            return None
        gap = math.lgamma(self.beta - dim / 2) - math.lgamma(self.beta)
        return -(0.5 * dim * math.log(math.pi * self.scale**2) + gap)

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        return Scaled(
            RationalQuadratic(self.scale, self.beta + 1), math.log(2 * self.beta / self.scale**2)
        )

    @property
    def shadow(self) -> Kernel | None:
        return RationalQuadratic(self.scale, self.beta - 1) if self.beta > 1 else None

    @property
    def shadow_scale(self) -> float:
        if self.beta <= 1:
            return super().shadow_scale
        return self.scale**2 / (2 * (self.beta - 1))

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # A multivariate t with 2 beta - D degrees of freedom. torch's one gamma that takes a generator is private.
        freedom = 2 * self.beta - like.shape[-1]
        if freedom <= 0:
            return super().noise(like, generator)
        half = torch.full((*like.shape[:-1], 1), freedom / 2, dtype=like.dtype, device=like.device)
        chi_square = 2 * torch._standard_gamma(half, generator=generator)
        return self.scale * normal_noise(like, generator) / chi_square.sqrt()


@checked
def student_t(scale: float, *, nu: float, dim: int) -> RationalQuadratic:
    """The Student-t density's kernel, `nu` degrees of freedom in `dim` dimensions: (1 + r²/(nu scale²))^-(nu + dim)/2.

    Its shadow constant is nu scale² / (nu + dim - 2). Raises: ValueError on scale or nu that is not positive.
    """
    check_bandwidth("nu", nu)
    check_bandwidth("scale", scale)
    return RationalQuadratic(scale * math.sqrt(nu), (nu + dim) / 2)


@dataclass(frozen=True)
class Riesz(Kernel):
    """k = r^-s, s > 0: no bandwidth. s = 1 is the slope of -|x - y|, hence sums of unit vectors (the energy distance).

    A coincident sample has weight 0: the direction to a point one stands on is the zero vector.
    """

    s: float = 1.0

    def __post_init__(self):
        if not 0 < self.s < math.inf:
            raise ValueError(
                f"s = {self.s!r}; wanted a positive exponent, 1 for the energy distance."
            )

    def log(self, sq: Tensor) -> Tensor:
        return (safe_sq(sq).log() * (-0.5 * self.s)).masked_fill_(sq == 0, -math.inf)

    def log_norm(self, dim: int) -> None:
        return None

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        return Scaled(Riesz(self.s + 2), math.log(self.s))

    @property
    def shadow(self) -> Kernel | None:
        return Riesz(self.s - 2) if self.s > 2 else None

    @property
    def shadow_scale(self) -> float:
        if self.s <= 2:
            return super().shadow_scale
        return 1 / (self.s - 2)
