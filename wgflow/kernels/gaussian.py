"""The Gaussian, the one kernel that is its own slope and its own shadow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.arguments import checked_constructor
from wgflow.kernels.kernel import Kernel, Scaled, check_bandwidth
from wgflow.kernels.radial import normal_noise


@checked_constructor
@dataclass(frozen=True)
class Gaussian(Kernel):
    """k = exp(-|x-y|² / 2h²). Its own shadow: the mean shift is h² times the KDE score (DFP Eq. 7)."""

    h: float  # bandwidth, a length

    def __post_init__(self):
        check_bandwidth("h", self.h)

    def log(self, sq: Tensor) -> Tensor:
        return sq * (-0.5 / self.h**2)

    def log_norm(self, dim: int) -> float:
        return -0.5 * dim * math.log(2 * math.pi * self.h**2)

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.h * normal_noise(like, generator)

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        return Scaled(self, -2 * math.log(self.h))

    @property
    def shadow(self) -> Kernel:
        return self

    @property
    def shadow_scale(self) -> float:
        return self.h**2
