"""Kernels of compact support. Gradient kernels lower the power by one, shadows raise it by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.kernels.kernel import Kernel, LengthScaleKernel, Scaled
from wgflow.kernels.radial import exponential_noise, normal_noise


@dataclass(frozen=True, eq=False, repr=False)
class Compact(LengthScaleKernel):
    r"""k = (1 - r²/h²)^power inside the ball of radius h, 0 outside; powers 0, 1, 2: flat, Epanechnikov, biweight.

    Farther than h from every sample there is no mass: log_mass is -inf and the mean shift is zero.

    Args:
        length_scale: h, the radius of the support; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].
        power: a whole number from 0 to 19.

    Raises:
        ValueError: If `length_scale` is not positive and finite, or `power` is another number.
    """

    power: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.power not in range(20):
            raise ValueError(
                f"power = {self.power!r}; wanted a whole number from 0 (flat), 1 (Epanechnikov), 2 (biweight)."
            )

    def _log(self, sq: Tensor) -> Tensor:
        u = sq / self.h**2
        inside = u < 1
        # Zeros are put in before log1p: a masked NaN would still poison second derivatives.
        inner = (-torch.where(inside, u, 0.0)).log1p()
        return inner.mul(self.power).masked_fill(~inside, -math.inf)

    def _log_norm(self, dim: int) -> float:
        gap = math.lgamma(self.power + 1) - math.lgamma(self.power + 1 + dim / 2)
        return -(0.5 * dim * math.log(math.pi * self.h**2) + gap)

    def _gradient_kernel(self) -> Kernel:
        if self.power == 0:
            return Zero()
        return Scaled(Compact(self.h, self.power - 1), math.log(2 * self.power / self.h**2))

    def _shadow(self) -> Compact:
        return Compact(self.h, self.power + 1)

    def _shadow_scale(self) -> float:
        return self.h**2 / (2 * (self.power + 1))

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        # r²/h² is Beta(D/2, power + 1): a chi-square over itself plus waiting times.
        z = normal_noise(like, generator)
        waits = 2 * exponential_noise(like, self.power + 1, generator).sum(-1, keepdim=True)
        return self.h * z / (z.square().sum(-1, keepdim=True) + waits).sqrt()


def flat(length_scale: float | Tensor) -> Compact:
    """1 within h, 0 beyond: the original mean shift. Its shadow is Epanechnikov, c = h²/2."""
    return Compact(length_scale, 0)


def epanechnikov(length_scale: float | Tensor) -> Compact:
    """1 - r²/h² within h: least mean squared error of a KDE. Its shadow is the biweight, c = h²/4."""
    return Compact(length_scale, 1)


def biweight(length_scale: float | Tensor) -> Compact:
    """(1 - r²/h²)² within h: the smoothest of the three, differentiable at the edge."""
    return Compact(length_scale, 2)


@dataclass(frozen=True)
class Zero(Kernel):
    """k = 0: the gradient kernel of `flat`, whose gradient vanishes wherever it exists."""

    def log(self, sq: Tensor) -> Tensor:
        return torch.full_like(sq, -math.inf)

    def log_norm(self, dim: int) -> None:
        return None

    @property
    def gradient_kernel(self) -> Kernel:
        return self
