r"""Toy distributions with exact samples, and exact log densities and scores where they are known.

Whatever samples takes `generator=`; the global seed is not touched. Samples lie on the device of the generator, and
without one on the CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from wgflow.arguments import draw_device, widened
from wgflow.density import KDE
from wgflow.kernels import Gaussian

__all__ = [
    "Checkerboard",
    "Funnel",
    "GaussianMixture",
    "Pinwheel",
    "Rings",
    "SwissRoll",
    "TwoMoons",
    "eight_gaussians",
    "unbalanced_mixture",
]


PANELS, NODES = 512, 8  # of the Gauss-Legendre quadrature along a curve


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
        device = draw_device(generator, self.means.device)
        w = self.weights.to(device)
        k = torch.multinomial(w, n, replacement=True, generator=generator).to(self.means.device)
        noise = torch.randn(
            n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=device
        )
        return self.means[k] + self.std[k, None] * noise.to(self.means)

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
        """This density convolved with N(0, h² I): the population KDE with `Gaussian(h)`."""
        return GaussianMixture(self.means, (self.std**2 + h**2).sqrt(), self.weights)


def eight_gaussians(*, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Eight equal Gaussians on a circle."""
    return _on_a_circle([1 / 8] * 8, radius, std)


def unbalanced_mixture(
    *, weights: tuple[float, ...] = (0.6, 0.3, 0.1), std: float = 0.1
) -> GaussianMixture:
    """Unequal Gaussians on the unit circle, to see whether a method keeps proportions or only finds modes."""
    return _on_a_circle(weights, 1.0, std)


def _on_a_circle(weights: Sequence[float], radius: float, std: float) -> GaussianMixture:
    """Gaussians of equal width, evenly spaced; on the CPU, whatever torch's default device."""
    count = len(weights)
    angle = torch.arange(count, dtype=torch.float64, device="cpu") * (2 * math.pi / count)
    means = radius * torch.stack([angle.cos(), angle.sin()], -1).float()
    return GaussianMixture(means, means.new_full((count,), std), means.new_tensor(weights))


class _Curve(ABC):
    """A point uniform in the parameter of some curves, plus Gaussian noise.

    Density and score by Gauss-Legendre quadrature along the curve, exact to rounding where a panel, a 512th of the
    curve, is not longer than the noise.
    """

    noise: float

    @abstractmethod
    def _curve(self, u: Tensor) -> Tensor:
        """Parameters u [n] in [0, 1] -> points [..., n, 2]; leading dimensions are equally likely curves."""

    def _smoothed(self, x: Tensor) -> KDE:
        if not self.noise > 0:
            raise ValueError(
                f"noise = {self.noise}: a curve without noise has no density; wanted a positive one."
            )
        nodes, weights = (torch.as_tensor(t, device=x.device) for t in leggauss(NODES))
        panels = torch.arange(PANELS, device=x.device).unsqueeze(-1)
        points = self._curve(((panels + (nodes + 1) / 2) / PANELS).flatten())
        weights = weights.repeat(points.shape[:-1].numel() // NODES)
        return KDE(points.flatten(0, -2).to(x), Gaussian(self.noise), weights=weights.to(x))

    def log_density(self, x: Tensor) -> Tensor:
        """[..., 2] -> [...]."""
        return self._smoothed(x).log_density(x.reshape(-1, 2)).view(x.shape[:-1])

    def score(self, x: Tensor) -> Tensor:
        """∇log density, [..., 2] -> [..., 2], units 1/length."""
        return self._smoothed(x).score(x.reshape(-1, 2)).view(x.shape)


@dataclass(frozen=True)
class TwoMoons(_Curve):
    """Two interleaving half circles of radius 1, uniform along each, plus Gaussian noise."""

    noise: float = 0.05

    def _curve(self, u: Tensor) -> Tensor:
        upper = torch.stack([(math.pi * u).cos() - 0.5, (math.pi * u).sin() - 0.25], -1)
        return torch.stack([upper, -upper])

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        upper = self._curve(_rand(n, generator=generator))[0]
        # The lower moon is the upper one rotated by π.
        side = (_rand(n, 1, generator=generator) < 0.5).float() * 2 - 1
        return side * upper + self.noise * _randn(n, 2, generator=generator)


@dataclass(frozen=True)
class SwissRoll(_Curve):
    """A spiral of two turns inside the unit disc, uniform in angle from π/2 to 9π/2, plus Gaussian noise."""

    noise: float = 0.03

    def _curve(self, u: Tensor) -> Tensor:
        angle = math.pi * (0.5 + 4 * u)
        return torch.stack([angle.cos(), angle.sin()], -1) * (angle / (4.5 * math.pi)).unsqueeze(-1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        spiral = self._curve(_rand(n, generator=generator))
        return spiral + self.noise * _randn(n, 2, generator=generator)


class _Closed(ABC):
    """A target whose log density is a formula, and whose score is the derivative of that formula."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor: ...

    def score(self, x: Tensor) -> Tensor:
        """∇log density, [..., D] -> [..., D], units 1/length. Without a graph."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (grad,) = torch.autograd.grad(self.log_density(at).sum(), at)
        return grad


@dataclass(frozen=True)
class Checkerboard(_Closed):
    """Uniform on the dark squares of a board of `cells` x `cells` over [-1, 1]², plus Gaussian noise."""

    cells: int = 4
    noise: float = 0.05

    def __post_init__(self):
        if self.cells < 2 or not self.noise > 0:
            raise ValueError(
                f"cells = {self.cells}, noise = {self.noise}; wanted 2 cells or more, positive noise."
            )

    def _corners(self, device: torch.device) -> Tensor:
        along = torch.arange(self.cells, device=device)
        i, j = torch.meshgrid(along, along, indexing="ij")
        dark = (i + j) % 2 == 0
        return torch.stack([i[dark], j[dark]], -1) * (2 / self.cells) - 1

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        corners = self._corners(_device(generator))
        square = _randint(len(corners), n, generator=generator)
        inside = _rand(n, 2, generator=generator) * (2 / self.cells)
        return corners[square] + inside + self.noise * _randn(n, 2, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        """[..., 2] -> [...]: a square convolved with the noise is a product of differences of normal integrals."""
        dtype, x = x.dtype, widened(x)
        low, side = self._corners(x.device).to(x), 2 / self.cells
        # By symmetry on the side where both integrals are small, and as logarithms: far away their difference and
        # their product would underflow.
        beyond = (x.unsqueeze(-2) - low - side / 2).abs() - side / 2
        near, far = (torch.special.log_ndtr(-t / self.noise) for t in (beyond, beyond + side))
        along = near + torch.log1p(-(far - near).exp())
        log_p = along.sum(-1).logsumexp(-1) - math.log(len(low)) - 2 * math.log(side)
        return log_p.to(dtype)


@dataclass(frozen=True)
class Rings(_Closed):
    """Concentric circles, equally likely, uniform in angle, plus Gaussian noise."""

    radii: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    noise: float = 0.02

    def __post_init__(self):
        if not self.radii or not all(r >= 0 for r in self.radii) or not self.noise > 0:
            raise ValueError(
                f"radii = {self.radii}, noise = {self.noise}; wanted radii >= 0 and a positive noise."
            )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        radii = torch.tensor(self.radii, device=_device(generator))
        radius = radii[_randint(len(radii), n, generator=generator)]
        angle = 2 * math.pi * _rand(n, generator=generator)
        circle = torch.stack([angle.cos(), angle.sin()], -1) * radius.unsqueeze(-1)
        return circle + self.noise * _randn(n, 2, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        """[..., 2] -> [...]: a circle convolved with a Gaussian is a Bessel function of the radius (Rice)."""
        s2 = self.noise**2
        r = x.norm(dim=-1, keepdim=True)
        R = torch.tensor(self.radii, dtype=x.dtype, device=x.device)
        each = (
            -((r - R) ** 2) / (2 * s2)
            + torch.special.i0e(r * R / s2).log()
            - math.log(2 * math.pi * s2)
        )
        return each.logsumexp(-1) - math.log(len(self.radii))


@dataclass(frozen=True)
class Funnel(_Closed):
    """Neal's funnel: x_1 ~ N(0, width²), the others ~ N(0, exp(x_1)). No single bandwidth fits its neck."""

    dim: int = 2
    width: float = 1.0

    def __post_init__(self):
        if self.dim < 2 or not self.width > 0:
            raise ValueError(
                f"dim = {self.dim}, width = {self.width}; wanted at least 2 dimensions and a positive width."
            )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, dim] independent draws."""
        noise = _randn(n, self.dim, generator=generator)
        neck = self.width * noise[:, :1]
        return torch.cat([neck, (0.5 * neck).exp() * noise[:, 1:]], -1)

    def log_density(self, x: Tensor) -> Tensor:
        """[..., dim] -> [...]."""
        neck, rest = x[..., 0], x[..., 1:]
        first = -((neck / self.width) ** 2) / 2 - math.log(self.width)
        # Each factor squared after the product: exp(-neck) alone would overflow where the product does not.
        others = -(rest * (-neck / 2).exp().unsqueeze(-1)).square().sum(-1) / 2
        others = others - 0.5 * (self.dim - 1) * neck
        return first + others - 0.5 * self.dim * math.log(2 * math.pi)


@dataclass(frozen=True)
class Pinwheel:
    """Spiral arms: Gaussians at radius 1, stretched along it and turned in proportion to exp(radius)."""

    arms: int = 5
    along: float = 0.3
    across: float = 0.1
    twist: float = 0.25

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, 2] independent draws."""
        arm = _randint(self.arms, n, generator=generator)
        z = _randn(n, 2, generator=generator)
        z = z * z.new_tensor([self.along, self.across]) + z.new_tensor([1.0, 0.0])
        angle = arm * (2 * math.pi / self.arms) + self.twist * z[:, 0].exp()
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], -1)


def _device(generator: torch.Generator | None) -> torch.device:
    """Where a target is drawn: on the device of the generator; without one, on the CPU."""
    return draw_device(generator, torch.device("cpu"))


def _rand(*shape: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=_device(generator))


def _randn(*shape: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=_device(generator))


def _randint(high: int, n: int, *, generator: torch.Generator | None) -> Tensor:
    return torch.randint(high, (n,), generator=generator, device=_device(generator))
