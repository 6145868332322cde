"""Matérn kernels of half-integer smoothness: gradient kernels lower the smoothness by one, shadows raise it by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import draw_device
from wgflow.distances import safe_root
from wgflow.kernels.kernel import LOG2E, Kernel, LengthScaleKernel, Scaled
from wgflow.kernels.length_scales import positive
from wgflow.kernels.radial import (
    direction,
    exponential_noise,
    log_sphere_area,
    safe_sq,
    without_coincident,
)

SMOOTHEST = 40.5  # beyond it, coefficients of the polynomial in u and their powers leave float64
FLOAT32_ORDER = 8  # the highest order of a polynomial that float32 holds, up to u = 5e4


@dataclass(frozen=True, eq=False, repr=False)
class Matern(LengthScaleKernel):
    r"""The Matérn kernel (Rasmussen and Williams 2006, Eq. 4.16), for example k = (1 + u) exp(-u) at nu = 3/2.

    u = sqrt(2 nu) r / h, and exp(-u) times the reverse Bessel polynomial in u, scaled to start at 1.

    Args:
        length_scale: h, a length; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].
        nu: smoothness, 1.5, 2.5, 3.5, ..., 40.5; nu = 1/2 is `Laplace`.

    Raises:
        ValueError: If `length_scale` is not positive and finite, or `nu` is another number.
    """

    nu: float = 1.5

    def __post_init__(self):
        super().__post_init__()
        if not (1.5 <= self.nu <= SMOOTHEST and float(self.nu + 0.5).is_integer()):
            raise ValueError(
                f"nu = {self.nu!r}; wanted 1.5, 2.5, 3.5, ..., {SMOOTHEST}. For nu = 1/2 use Laplace(length_scale); a "
                "larger nu is nearly Gaussian(length_scale)."
            )

    @property
    def decay_length(self) -> float:
        """r / u, the length over which the kernel falls by a factor e far away."""
        return self.h / math.sqrt(2 * self.nu)

    @property
    def order(self) -> int:
        return round(self.nu - 0.5)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The coefficients of the polynomial in u, lowest first."""
        p, fact = self.order, math.factorial
        top = fact(p) / fact(2 * p)
        return tuple(top * fact(2 * p - k) * 2**k / (fact(p - k) * fact(k)) for k in range(p + 1))

    def _log(self, sq: Tensor) -> Tensor:
        u = safe_root(sq).div_(self.decay_length)
        if self.order > FLOAT32_ORDER:
            u = u.double()
        *lower, second, highest = self.coefficients
        poly = (u * highest).add_(second)
        for c in reversed(lower):
            poly = (u * poly).add_(c)
        # Where the polynomial leaves the floats, u is far larger than its logarithm.
        return poly.clamp_max(torch.finfo(poly.dtype).max).log().sub_(u).to(sq.dtype)

    def _radial_masses(self, dim: int) -> list[float]:
        """∫ c_k u^k exp(-u) u^(D-1) du / Γ(D) of each term of the polynomial."""
        return [
            c * math.exp(math.lgamma(dim + k) - math.lgamma(dim))
            for k, c in enumerate(self.coefficients)
        ]

    def _log_norm(self, dim: int) -> float:
        radial = math.lgamma(dim) + math.log(sum(self._radial_masses(dim)))
        return -(log_sphere_area(dim) + dim * math.log(self.decay_length) + radial)

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        # The radius is a mixture of Gamma(D + k) over the terms u^k of the polynomial.
        dim = like.shape[-1]
        masses = self._radial_masses(dim)
        shares = [mass / sum(masses) for mass in masses]
        shares = torch.tensor(shares, device=draw_device(generator, like.device))
        points = like[..., 0].numel()
        term = torch.multinomial(shares, points, replacement=True, generator=generator)
        term = term.to(like.device)
        waits = exponential_noise(like, dim + self.order, generator)
        counted = torch.arange(dim + self.order, device=like.device) < dim + term.view(
            *like.shape[:-1], 1
        )
        radius = self.decay_length * (waits * counted).sum(-1, keepdim=True)
        return radius * direction(like, generator)

    def _gradient_kernel(self) -> Kernel:
        tau = self.decay_length
        lower = Laplace(tau) if self.order == 1 else _matern_of_decay(tau, self.nu - 1)
        return Scaled(lower, -math.log((2 * self.order - 1) * tau**2))

    def _shadow(self) -> Matern | None:
        return _matern_of_decay(self.decay_length, self.nu + 1) if self.nu < SMOOTHEST else None

    def _shadow_scale(self) -> float:
        return (2 * self.order + 1) * self.decay_length**2


def _matern_of_decay(decay_length: float, nu: float) -> Matern:
    return Matern(decay_length * math.sqrt(2 * nu), nu)


@dataclass(frozen=True, eq=False, repr=False)
class Laplace(LengthScaleKernel):
    r"""k = exp(-r / h): the kernel of the published drifting models, Matérn of smoothness 1/2.

    Its shadow is Matérn-3/2: the mean shift ascends that density, not its own. The score of its KDE jumps at the
    samples: there, its derivative leaves the coincident sample out.

    Args:
        length_scale: h, the decay length; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].

    Raises:
        ValueError: If `length_scale` is not positive and finite.
    """

    def _log(self, sq: Tensor) -> Tensor:
        return safe_root(sq).div_(-self.h)

    def _values(self, sq: Tensor) -> Tensor:
        return sq.sqrt().mul_(-LOG2E / self.h).exp2_()

    def _log_norm(self, dim: int) -> float:
        return -(log_sphere_area(dim) + dim * math.log(self.h) + math.lgamma(dim))

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        waits = exponential_noise(like, like.shape[-1], generator)
        radius = waits.sum(-1, keepdim=True)  # Gamma(D)
        return self.h * radius * direction(like, generator)

    def _gradient_kernel(self) -> Kernel:
        return Scaled(Yukawa(self.h), -2 * math.log(self.h))

    def _shadow(self) -> Matern:
        return _matern_of_decay(self.h, 1.5)

    def _shadow_scale(self) -> float:
        return self.h**2


@dataclass(frozen=True)
class Yukawa(Kernel):
    """k = exp(-u) / u, u = r / h: the gradient kernel of `Laplace`, up to a constant.

    A coincident sample has weight 0, so that it does not pull.
    """

    length_scale: float

    def __post_init__(self):
        positive("length_scale", self.length_scale)

    def log(self, sq: Tensor) -> Tensor:
        u = safe_sq(sq).sqrt() / self.length_scale
        return without_coincident(-u - u.log(), sq)

    def log_norm(self, dim: int) -> float | None:
        if dim == 1:
            return None  # 1/r is not integrable on a line
        return -(log_sphere_area(dim) + dim * math.log(self.length_scale) + math.lgamma(dim - 1))

    @property
    def gradient_kernel(self) -> Kernel:
        return Scaled(YukawaSlope(self.length_scale), -2 * math.log(self.length_scale))

    @property
    def shadow(self) -> Kernel:
        return Laplace(self.length_scale)

    @property
    def shadow_scale(self) -> float:
        return self.length_scale**2


@dataclass(frozen=True)
class YukawaSlope(Kernel):
    """k = (1 + u) exp(-u) / u³, u = r / h: the gradient kernel of `Yukawa`, up to a constant.

    A coincident sample has weight 0, where the score of a Laplace density jumps.
    """

    length_scale: float

    def log(self, sq: Tensor) -> Tensor:
        u = safe_sq(sq).sqrt() / self.length_scale
        return without_coincident(u.log1p() - u - 3 * u.log(), sq)

    def log_norm(self, dim: int) -> float | None:
        if dim <= 3:
            return None  # 1/r³ is not integrable
        terms = math.exp(math.lgamma(dim - 3)) + math.exp(math.lgamma(dim - 2))
        return -(log_sphere_area(dim) + dim * math.log(self.length_scale) + math.log(terms))

    @property
    def gradient_kernel(self) -> Kernel:
        raise ValueError(
            "the Hessian of a Laplace density is unbounded at every sample and has no gradient here; use "
            "Matern(length_scale, nu=1.5) or Gaussian(length_scale) where the Hessian is differentiated."
        )

    @property
    def shadow(self) -> Kernel:
        return Yukawa(self.length_scale)

    @property
    def shadow_scale(self) -> float:
        return self.length_scale**2
