"""One ladder of exponential kernels: slopes lead down it, Matérn to Laplace to Yukawa, and shadows lead up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.arguments import checked_constructor
from wgflow.kernels.kernel import Kernel, Scaled, check_bandwidth
from wgflow.kernels.radial import direction, exponential_noise, safe_sq, safe_sqrt, sphere_area


@checked_constructor
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
            raise ValueError(
                f"nu = {self.nu!r}; wanted 1.5, 2.5, 3.5, ... For nu = 1/2 use Laplace(tau)."
            )

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
            c * math.exp(math.lgamma(dim + k) - math.lgamma(dim))
            for k, c in enumerate(self._coefficients)
        )
        return -(sphere_area(dim) + dim * math.log(self.tau) + math.lgamma(dim) + math.log(radial))

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # The radius is a mixture of Gamma(D + k) over the terms u^k of the polynomial.
        dim = like.shape[-1]
        masses = [
            c * math.exp(math.lgamma(dim + k) - math.lgamma(dim))
            for k, c in enumerate(self._coefficients)
        ]
        term = torch.multinomial(
            torch.tensor(masses, device=like.device),
            like[..., 0].numel(),
            replacement=True,
            generator=generator,
        ).view(like.shape[:-1])
        waits = exponential_noise(like, dim + self.order, generator)
        counted = torch.arange(dim + self.order, device=like.device) < dim + term.unsqueeze(-1)
        return self.tau * (waits * counted).sum(-1, keepdim=True) * direction(like, generator)

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


@checked_constructor
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
        radius = exponential_noise(like, like.shape[-1], generator).sum(
            -1, keepdim=True
        )  # Gamma(D)
        return self.tau * radius * direction(like, generator)

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
        u = safe_sq(sq).sqrt() / self.tau
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
