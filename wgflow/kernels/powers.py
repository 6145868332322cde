"""Kernels with power-law tails. Gradient kernels raise the exponent by one, shadows lower it by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import draw_device
from wgflow.kernels.kernel import Kernel, LengthScaleKernel, Scaled
from wgflow.kernels.length_scales import as_length_scale, positive
from wgflow.kernels.radial import normal_noise, safe_sq, without_coincident


@dataclass(frozen=True, eq=False, repr=False)
class RationalQuadratic(LengthScaleKernel):
    r"""k = (1 + r² / (2 alpha h²))^-alpha (Rasmussen and Williams 2006, Eq. 4.19): a point far away feels every sample.

    A mixture of Gaussians over length scales; the Gaussian itself as alpha grows. A density in D dimensions if
    alpha > D/2. Its shadow, for alpha > 1, has exponent alpha - 1.

    Args:
        length_scale: h, a length; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].
        alpha: exponent, positive.

    Raises:
        ValueError: If `length_scale` or `alpha` is not positive and finite.
    """

    alpha: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "alpha", positive("alpha", self.alpha))

    @property
    def sq_scale(self) -> float:
        """2 alpha h², the squared distance at which the bracket is 2."""
        return 2 * self.alpha * self.h**2

    def _log(self, sq: Tensor) -> Tensor:
        return (sq / self.sq_scale).log1p().mul_(-self.alpha)

    def _log_norm(self, dim: int) -> float | None:
        if self.alpha <= dim / 2:
            return None
        from scipy.special import (
            betaln,  # here: it would add a tenth to the time of `import wgflow`
        )

        # log Γ(α - D/2) - log Γ(α), whose digits cancel for a large α unless it is a Beta function's.
        gap = float(betaln(self.alpha - dim / 2, dim / 2)) - math.lgamma(dim / 2)
        return -(0.5 * dim * math.log(math.pi * self.sq_scale) + gap)

    def _gradient_kernel(self) -> Kernel:
        h = self.h * math.sqrt(self.alpha / (self.alpha + 1))  # the same 2 alpha h²
        return Scaled(RationalQuadratic(h, self.alpha + 1), -2 * math.log(self.h))

    def _shadow(self) -> RationalQuadratic | None:
        if self.alpha <= 1:
            return None
        return RationalQuadratic(self.h * math.sqrt(self.alpha / (self.alpha - 1)), self.alpha - 1)

    def _shadow_scale(self) -> float:
        if self.alpha <= 1:
            return super()._shadow_scale()
        return self.sq_scale / (2 * (self.alpha - 1))

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        # A multivariate t with 2 alpha - D degrees of freedom. torch's one gamma that takes a generator is private.
        freedom = 2 * self.alpha - like.shape[-1]
        if freedom <= 0:
            return super()._noise(like, generator)
        half = torch.full(
            (*like.shape[:-1], 1),
            freedom / 2,
            dtype=torch.promote_types(like.dtype, torch.float32),  # no gamma in half precision
            device=draw_device(generator, like.device),
        )
        chi_square = 2 * torch._standard_gamma(half, generator=generator).to(like)
        return math.sqrt(self.sq_scale) * normal_noise(like, generator) / chi_square.sqrt()


def student_t(length_scale: float | Tensor, *, nu: float, dim: int) -> RationalQuadratic:
    """The kernel of the Student-t density with `nu` degrees of freedom in `dim` dimensions.

    k = (1 + r² / (nu h²))^(-(nu + dim) / 2); its shadow constant is nu h² / (nu + dim - 2).

    Args:
        length_scale: h, a length; a number, or a tensor [], [D], [..., 1, D], [..., 1, 1],
            or a Cholesky factor [..., D, D].
        nu: degrees of freedom, positive.
        dim: the dimension D in which it is the Student-t density.

    Raises:
        ValueError: If `length_scale` or `nu` is not positive and finite.
    """
    nu = positive("nu", nu)
    scale = as_length_scale(length_scale)
    return RationalQuadratic(scale * math.sqrt(nu / (nu + dim)), (nu + dim) / 2)


@dataclass(frozen=True)
class Riesz(Kernel):
    """k = r^-s, s > 0, without a length scale. s = 1 is the gradient kernel of -r: unit vectors (energy distance).

    A coincident sample has weight 0: it has no direction.
    """

    s: float = 1.0

    def __post_init__(self):
        positive("s", self.s)

    def log(self, sq: Tensor) -> Tensor:
        return without_coincident(safe_sq(sq).log().mul_(-0.5 * self.s), sq)

    def _values(self, sq: Tensor) -> Tensor:
        if self.s != 1:
            return super()._values(sq)
        # In place of a logarithm and an exponential, which take six times as long.
        return sq.rsqrt().nan_to_num_(nan=math.nan, posinf=0.0)

    def log_norm(self, dim: int) -> None:
        return None

    @property
    def gradient_kernel(self) -> Kernel:
        return Scaled(Riesz(self.s + 2), math.log(self.s))

    @property
    def shadow(self) -> Kernel | None:
        return Riesz(self.s - 2) if self.s > 2 else None

    @property
    def shadow_scale(self) -> float:
        if self.s <= 2:
            return super().shadow_scale  # type: ignore[return-value]
        return 1 / (self.s - 2)
