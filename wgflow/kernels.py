r"""Kernels as frozen values: k(x, y) = k(|x - y|²), each knowing its mass, its slope and its shadow.

Two relations carry the whole library. The *slope* of k is s = -2 dk/d|x-y|², so that ∇_x k(x, y) = s (y - x):
scores are averages under the slope. The *shadow* of k is the kernel H whose slope is k / c (Cheng 1995), so
that the mean shift under k is c (f_H / f_k) ∇log f_H. Only the Gaussian is its own shadow, hence "drift = h²
times the score gap" is Gaussian alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Gaussian", "Kernel", "Laplace", "Matern", "Riesz", "Scaled", "Yukawa"]


def check_bandwidth(name: str, value: float) -> None:
    """Refuse a bandwidth that is not a positive finite number. Raises: ValueError."""
    if isinstance(value, Tensor) or not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(
            f"{name} = {value!r} is not a bandwidth; wanted one positive finite number, a length in the units of x. "
            "A fraction (say .2) of the mean distance between points is a usual start: torch.cdist(x, y).mean().item()."
        )


def sphere_area(dim: int) -> float:
    """log of the area of the unit sphere in `dim` dimensions: log 2 π^(D/2) / Γ(D/2)."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


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


@dataclass(frozen=True)
class Matern(Kernel):
    """k = exp(-u) (1 + u + ...), u = r / tau: the Matérn kernel of half-integer smoothness `nu` = 1.5, 2.5, ...

    The polynomial is the reverse Bessel polynomial scaled to start at 1, so nu = 1.5 reads (1 + u) exp(-u),
    without the factor sqrt(2 nu) some texts put into u. Slopes go down the ladder of nu, shadows go up. nu =
    1/2 is `Laplace`.
    """

    tau: float  # decay length
    nu: float = 1.5

    def __post_init__(self):
        check_bandwidth("tau", self.tau)
        if not (self.nu >= 1.5 and float(self.nu + 0.5).is_integer()):
            raise ValueError(f"nu = {self.nu!r}; wanted 1.5, 2.5, 3.5, ... For nu = 1/2 use Laplace(tau).")

    @property
    def order(self) -> int:
        return round(self.nu - 0.5)

    @cached_property
    def _coefficients(self) -> tuple[float, ...]:
        p, fact = self.order, math.factorial
        top = fact(p) / fact(2 * p)
        return tuple(top * fact(2 * p - k) * 2**k / (fact(p - k) * fact(k)) for k in range(p + 1))

    def log(self, sq: Tensor) -> Tensor:
        u = safe_sqrt(sq) / self.tau
        poly = torch.full_like(u, self._coefficients[-1])
        for c in reversed(self._coefficients[:-1]):
            poly = poly * u + c
        return poly.log() - u

    def log_norm(self, dim: int) -> float:
        radial = sum(
            c * math.exp(math.lgamma(dim + k) - math.lgamma(dim)) for k, c in enumerate(self._coefficients)
        )
        return -(sphere_area(dim) + dim * math.log(self.tau) + math.lgamma(dim) + math.log(radial))

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # The radius is a mixture of Gamma(D + k) over the terms u^k of the polynomial.
        dim = like.shape[-1]
        masses = [
            c * math.exp(math.lgamma(dim + k) - math.lgamma(dim)) for k, c in enumerate(self._coefficients)
        ]
        term = torch.multinomial(
            torch.tensor(masses, device=like.device),
            like[..., 0].numel(),
            replacement=True,
            generator=generator,
        ).view(like.shape[:-1])
        waits = exponential_noise(like, dim + self.order, generator)
        counted = torch.arange(dim + self.order, device=like.device) < dim + term.unsqueeze(-1)
        return self.tau * (waits * counted).sum(-1, keepdim=True) * _direction(like, generator)

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        below = Laplace(self.tau) if self.order == 1 else Matern(self.tau, self.nu - 1)
        return Scaled(below, -math.log((2 * self.order - 1) * self.tau**2))

    @property
    def shadow(self) -> Kernel:
        return Matern(self.tau, self.nu + 1)

    @property
    def shadow_scale(self) -> float:
        return (2 * self.order + 1) * self.tau**2


@dataclass(frozen=True)
class Laplace(Kernel):
    """k = exp(-r / tau), the kernel of the released drifting code. Its shadow is Matérn-3/2: it climbs that density."""

    tau: float  # decay length

    def __post_init__(self):
        check_bandwidth("tau", self.tau)

    def log(self, sq: Tensor) -> Tensor:
        return safe_sqrt(sq) / -self.tau

    def log_norm(self, dim: int) -> float:
        return -(sphere_area(dim) + dim * math.log(self.tau) + math.lgamma(dim))

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        radius = exponential_noise(like, like.shape[-1], generator).sum(-1, keepdim=True)  # Gamma(D)
        return self.tau * radius * _direction(like, generator)

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        return Scaled(Yukawa(self.tau), -2 * math.log(self.tau))

    @property
    def shadow(self) -> Kernel:
        return Matern(self.tau, 1.5)

    @property
    def shadow_scale(self) -> float:
        return self.tau**2


@dataclass(frozen=True)
class Yukawa(Kernel):
    """k = exp(-u) / u, u = r / tau: the slope of `Laplace`. A coincident sample has weight 0, so that it
    pulls nowhere.
    """

    tau: float  # decay length

    def __post_init__(self):
        check_bandwidth("tau", self.tau)

    def log(self, sq: Tensor) -> Tensor:
        u = _safe(sq).sqrt() / self.tau
        return (-u - u.log()).masked_fill_(sq == 0, -math.inf)

    def log_norm(self, dim: int) -> float | None:
        if dim == 1:
            return None  # 1/r is not integrable on a line
        return -(sphere_area(dim) + dim * math.log(self.tau) + math.lgamma(dim - 1))

    @property
    def slope(self) -> Kernel:
        raise ValueError(
            "the score of a Laplace density jumps at every sample, so it has no gradient; "
            "use Matern(tau, 1.5) or Gaussian(h) where the score is differentiated again."
        )

    @property
    def shadow(self) -> Kernel:
        return Laplace(self.tau)

    @property
    def shadow_scale(self) -> float:
        return self.tau**2


@dataclass(frozen=True)
class Riesz(Kernel):
    """k = r^-s, s > 0: no bandwidth. s = 1 is the slope of -|x - y|, hence sums of unit vectors (the energy distance).

    A coincident sample has weight 0: the direction to a point one stands on is the zero vector.
    """

    s: float = 1.0

    def __post_init__(self):
        if not 0 < self.s < math.inf:
            raise ValueError(f"s = {self.s!r}; wanted a positive exponent, 1 for the energy distance.")

    def log(self, sq: Tensor) -> Tensor:
        return (_safe(sq).log() * (-0.5 * self.s)).masked_fill_(sq == 0, -math.inf)

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


def safe_sqrt(sq: Tensor) -> Tensor:
    """sqrt whose derivative at 0 is 0 rather than infinite, for kernels of r under autograd."""
    return sq.sqrt() if not sq.requires_grad else _safe(sq).sqrt() * (sq != 0)


def _safe(sq: Tensor) -> Tensor:
    # Under autograd a masked infinity still gives 0 * inf = NaN, so zeros are replaced before the function, not after.
    return torch.where(sq == 0, 1.0, sq) if sq.requires_grad else sq


def normal_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals shaped as `like`."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _direction(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.nn.functional.normalize(normal_noise(like, generator), dim=-1)


def exponential_noise(like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """[..., count] unit exponentials: a sum of k of them is Gamma(k)."""
    shape = (*like.shape[:-1], count)
    return -torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device).neg().log1p()
