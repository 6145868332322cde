"""Kernels that vanish outside a ball. Slopes take one power away, shadows add one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.kernels.kernel import Kernel, Scaled, check_bandwidth
from wgflow.kernels.radial import exponential_noise, normal_noise


@checked_constructor
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
        return (
            (-torch.where(inside, u, 0.0)).log1p().mul(self.power).masked_fill(~inside, -math.inf)
        )

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


@checked
def flat(h: float) -> Compact:
    """1 within h, 0 beyond: the original mean shift. Its shadow is Epanechnikov, c = h²/2."""
    return Compact(h, 0)


@checked
def epanechnikov(h: float) -> Compact:
    """1 - r²/h² within h: least mean squared error of all. Its shadow is the biweight, c = h²/4."""
    return Compact(h, 1)


@checked
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
