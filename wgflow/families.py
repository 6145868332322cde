r"""Two more families of kernels, power-law tails and compact support. Slopes and shadows stay in the family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.kernels import Kernel, Scaled, check_bandwidth, exponential_noise, normal_noise

__all__ = ["Compact", "RationalQuadratic", "biweight", "epanechnikov", "flat", "student_t"]


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
        return Scaled(RationalQuadratic(self.scale, self.beta + 1), math.log(2 * self.beta / self.scale**2))

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


def student_t(scale: float, *, nu: float, dim: int) -> RationalQuadratic:
    """The Student-t density's kernel, `nu` degrees of freedom in `dim` dimensions: (1 + r²/(nu scale²))^-(nu + dim)/2.

    Its shadow constant is nu scale² / (nu + dim - 2). Raises: ValueError on scale or nu that is not positive.
    """
    check_bandwidth("nu", nu)
    check_bandwidth("scale", scale)
    return RationalQuadratic(scale * math.sqrt(nu), (nu + dim) / 2)


@dataclass(frozen=True)
class Compact(Kernel):
    r"""k = (1 - r²/h²)^power inside the ball of radius h, 0 outside; power 0, 1, 2 are flat, Epanechnikov, biweight.

    Beyond h of every sample there is no mass: log_mass is -inf there, and the mean shift is zero.
    """

    h: float  # radius of the support, a length
    power: int = 1

    def __post_init__(self):
        check_bandwidth("h", self.h)
        if self.power not in range(20):
            raise ValueError(
                f"power = {self.power!r}; wanted a whole number from 0 (flat), 1 (Epanechnikov), 2 (biweight)."
            )

    def log(self, sq: Tensor) -> Tensor:
        u = sq / self.h**2
        inside = u < 1
        # Zeros are put in before log1p: a masked NaN would still poison second derivatives.
        return (-torch.where(inside, u, 0.0)).log1p().mul(self.power).masked_fill(~inside, -math.inf)

    def log_norm(self, dim: int) -> float:
        gap = math.lgamma(self.power + 1) - math.lgamma(self.power + 1 + dim / 2)
        return -(0.5 * dim * math.log(math.pi * self.h**2) + gap)

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        if self.power == 0:
            return Nothing()
        return Scaled(Compact(self.h, self.power - 1), math.log(2 * self.power / self.h**2))

    @property
    def shadow(self) -> Kernel:
        return Compact(self.h, self.power + 1)

    @property
    def shadow_scale(self) -> float:
        return self.h**2 / (2 * (self.power + 1))

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # r²/h² is Beta(D/2, power + 1), a ratio of a chi-square and waiting times.
        z = normal_noise(like, generator)
        waits = 2 * exponential_noise(like, self.power + 1, generator).sum(-1, keepdim=True)
        return self.h * z / (z.square().sum(-1, keepdim=True) + waits).sqrt()


def flat(h: float) -> Compact:
    """1 within h, 0 beyond: the original mean shift. Its shadow is Epanechnikov, c = h²/2."""
    return Compact(h, 0)


def epanechnikov(h: float) -> Compact:
    """1 - r²/h² within h: least mean squared error of all. Its shadow is the biweight, c = h²/4."""
    return Compact(h, 1)


def biweight(h: float) -> Compact:
    """(1 - r²/h²)² within h: the smoothest of the three, differentiable at the edge."""
    return Compact(h, 2)


@dataclass(frozen=True)
class Nothing(Kernel):
    """k = 0: the slope of `flat`, whose gradient is zero wherever it exists."""

    def log(self, sq: Tensor) -> Tensor:
        return torch.full_like(sq, -math.inf)

    def log_norm(self, dim: int) -> None:
        return None

    @property
    def slope(self) -> Kernel:
        return self
