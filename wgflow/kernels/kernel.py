"""What every kernel knows: its value, its mass, its slope and its shadow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Kernel(ABC):
    """A radial kernel. Values are compared, hashed and printed as the numbers they hold; none of them takes a
    gradient.
    """

    @abstractmethod
    def log(self, sq: Tensor) -> Tensor:
        """log k at squared distances `sq` (length²), elementwise; -inf where k vanishes or is not defined."""

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """log k(x_i, y_j), x [..., N, D], y [..., M, D] -> [..., N, M]: every pair, for what is no sum over samples."""
        return self.log(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square())

    @abstractmethod
    def log_norm(self, dim: int) -> float | Tensor | None:
        """-log ∫ k over R^dim, so that exp(log + log_norm) is a density; None where the integral is infinite."""

    @property
    @abstractmethod
    def slope(self) -> Kernel:
        """The kernel s = -2 dk/d|x-y|² (units 1/length² times those of k): ∇_x k(x, y) = s (y - x)."""

    def covector(self, shift: Tensor) -> Tensor:
        """The gradient that a shift stands for, ∇_x k(x, y) = s covector(y - x): itself unless space is stretched."""
        return shift

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws from k / ∫k, shaped as `like` [..., D]. Raises: ValueError where none is known."""
        raise ValueError(
            f"{self!r} cannot be drawn from; use a Gaussian, Laplace or Matern kernel to sample a KDE."
        )

    @property
    def shadow(self) -> Kernel | None:
        """H with slope(H) = k / shadow_scale: the kernel whose density the mean shift under k climbs. None:
        no such H.
        """
        return None

    @property
    def shadow_scale(self) -> float:
        """c, a length²: mean shift under k = c (f_H / f_k) ∇log f_H, f unnormalised sums. Raises: ValueError
        without H.
        """
        raise ValueError(
            f"{self!r} has no shadow, so its mean shift climbs no density of this form; a Gaussian's does."
        )


@dataclass(frozen=True)
class Scaled(Kernel):
    """exp(log_scale) times another kernel: what slopes are made of."""

    kernel: Kernel
    log_scale: float

    def log(self, sq: Tensor) -> Tensor:
        return self.kernel.log(sq) + self.log_scale

    def log_norm(self, dim: int) -> float | Tensor | None:
        inner = self.kernel.log_norm(dim)
        return None if inner is None else inner - self.log_scale

    @property
    def slope(self) -> Kernel:
        return Scaled(self.kernel.slope, self.log_scale)

    @property
    def shadow(self) -> Kernel | None:
        return self.kernel.shadow

    @property
    def shadow_scale(self) -> float:
        return self.kernel.shadow_scale * math.exp(self.log_scale)


def as_kernels(kernel: Kernel | Sequence[Kernel]) -> tuple[Kernel, ...]:
    """One kernel or several, as a tuple: several scales together are a sum of fields. Raises: ValueError on none."""
    kernels = (kernel,) if isinstance(kernel, Kernel) else tuple(kernel)
    if not kernels:
        raise ValueError(
            "kernel is empty; wanted one kernel or several, such as [Gaussian(0.1), Gaussian(1.0)]."
        )
    return kernels


def check_bandwidth(name: str, value: float) -> None:
    """Refuse a bandwidth that is not a positive finite number. Raises: ValueError."""
    if isinstance(value, Tensor) or not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(
            f"{name} = {value!r} is not a bandwidth; wanted one positive finite number, a length in the units of x. "
            "A fraction (say .2) of the mean distance between points is a usual start: torch.cdist(x, y).mean().item()."
        )
