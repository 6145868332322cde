r"""Two-dimensional targets that know themselves: exact samples, and log density and score where these are exact.

Everything that samples takes `generator=`; nothing touches the process-wide seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GaussianMixture", "SwissRoll", "TwoMoons", "eight_gaussians", "unbalanced_mixture"]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ_k weights_k N(means_k, std_k² I), any dimension: means [K, D], std [K], weights [K] (normalised here)."""

    means: Tensor
    std: Tensor
    weights: Tensor

    def __post_init__(self):
        if (
            self.means.dim() != 2
            or self.std.shape != self.means.shape[:1]
            or self.weights.shape != self.std.shape
        ):
            raise ValueError(
                f"means {list(self.means.shape)}, std {list(self.std.shape)}, weights {list(self.weights.shape)}; "
                "wanted [K, D], [K] and [K]. One std for all: torch.full((K,), std)."
            )
        if not bool((self.std > 0).all() & (self.weights >= 0).all() & (self.weights.sum() > 0)):
            raise ValueError(
                "std must be positive, weights >= 0 with a positive sum; drop a component of no width."
            )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, D] independent draws."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.std[k, None] * noise

    def _log_joint(self, x: Tensor) -> Tensor:
        gap = (x.unsqueeze(-2) - self.means).square().sum(-1)
        log_norm = self.means.shape[1] * (self.std.log() + 0.5 * math.log(2 * math.pi))
        return (self.weights / self.weights.sum()).log() - log_norm - gap / (2 * self.std**2)

    def log_density(self, x: Tensor) -> Tensor:
        """[..., D] -> [...]."""
        return self._log_joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """∇log density, [..., D] -> [..., D], units 1/length."""
        W = self._log_joint(x).softmax(-1)
        return (W.unsqueeze(-1) * (self.means - x.unsqueeze(-2)) / self.std[:, None] ** 2).sum(-2)

    def smoothed(self, h: float) -> GaussianMixture:
        """This density convolved with N(0, h² I): the exact population KDE under `Gaussian(h)`."""
        return GaussianMixture(self.means, (self.std**2 + h**2).sqrt(), self.weights)


def eight_gaussians(*, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Eight equal Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return GaussianMixture(means.float(), torch.full((8,), std), torch.full((8,), 1 / 8))


def unbalanced_mixture(*, weights: tuple[float, ...] = (0.6, 0.3, 0.1), std: float = 0.1) -> GaussianMixture:
    """Unequal Gaussians on a unit circle: does a method keep proportions, or only find modes?"""
    angle = torch.arange(len(weights), dtype=torch.float64) * (2 * math.pi / len(weights))
    means = torch.stack([angle.cos(), angle.sin()], -1).float()
    return GaussianMixture(means, torch.full((len(weights),), std), torch.tensor(weights))


@dataclass(frozen=True)
class TwoMoons:
    """Two interleaving half circles of radius 1, uniform along each, plus Gaussian noise."""

    noise: float = 0.05

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        angle = math.pi * torch.rand(n, generator=generator)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
        side = (
            torch.rand(n, 1, generator=generator) < 0.5
        ).float() * 2 - 1  # the lower moon is the upper one turned by π
        return side * upper + self.noise * torch.randn(n, 2, generator=generator)


@dataclass(frozen=True)
class SwissRoll:
    """A spiral of two turns inside the unit disc, uniform in angle from π/2 to 9π/2, plus Gaussian noise."""

    noise: float = 0.03

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        angle = math.pi * (0.5 + 4 * torch.rand(n, generator=generator))
        spiral = torch.stack([angle.cos(), angle.sin()], -1) * (angle / (4.5 * math.pi)).unsqueeze(-1)
        return spiral + self.noise * torch.randn(n, 2, generator=generator)
