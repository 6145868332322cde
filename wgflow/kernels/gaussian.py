"""The Gaussian kernel: up to constants its own gradient kernel, and its own shadow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.kernels.kernel import Kernel, LengthScaleKernel, Scaled
from wgflow.kernels.radial import normal_noise


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(LengthScaleKernel):
    r"""k = exp(-r² / 2h²): the RBF or squared exponential kernel.

    Its own shadow: the mean shift is h² times the score of the KDE (DFP Eq. 7).

    Args:
        length_scale: h, the standard deviation, a length; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].

    Raises:
        ValueError: If `length_scale` is not positive and finite.
    """

    def _log(self, sq: Tensor) -> Tensor:
        return sq * (-0.5 / self.h**2)

    def _log_norm(self, dim: int) -> float:
        return -0.5 * dim * math.log(2 * math.pi * self.h**2)

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.h * normal_noise(like, generator)

    def _gradient_kernel(self) -> Kernel:
        return Scaled(self, -2 * math.log(self.h))

    def _shadow(self) -> Gaussian:
        return self

    def _shadow_scale(self) -> float:
        return self.h**2
