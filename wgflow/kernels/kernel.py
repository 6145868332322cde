"""Kernels as values: the interface, kernels with a length scale, and multiples of kernels."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.distances import sq_distances
from wgflow.kernels.length_scales import (
    as_length_scale,
    check_dimension,
    covector,
    describe,
    divide_square,
    is_matrix,
    multiply,
    rescale,
    rescaled_log_norm,
)

LOG2E = 1 / math.log(2)


class Kernel(ABC):
    """A radial kernel k(x, y) = k(|x - y|²). A frozen value: printable, hashable, compared by what it holds."""

    @abstractmethod
    def log(self, sq: Tensor) -> Tensor:
        """log k at squared distances `sq` (length²), elementwise; -inf where k vanishes or is undefined."""

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """log k(x_i, y_j) for all pairs: x [..., N, D], y [..., M, D] -> [..., N, M], in float32 at least."""
        return self.log(sq_distances(x, y))

    def _values(self, sq: Tensor) -> Tensor:
        """k at squared distances, in a new tensor, without derivatives."""
        return self.log(sq).mul_(LOG2E).exp2_()  # a third of the time of exp

    @abstractmethod
    def log_norm(self, dim: int) -> float | Tensor | None:
        """-log ∫ k over R^dim, so that exp(log + log_norm) is a density. None where the integral is infinite."""

    @property
    @abstractmethod
    def gradient_kernel(self) -> Kernel:
        """The kernel s with ∇_x k(x, y) = s(x, y) covector(y - x); s = -2 dk/d|x-y|² for a number as length scale."""

    def covector(self, shift: Tensor) -> Tensor:
        """Turn an average of y - x under the gradient kernel into a gradient: divide by length scales² if tensors."""
        return shift

    def standardize(self) -> tuple[Kernel, Tensor | None]:
        """(k', l) with k(x, y) = k'(x / l, y / l), see `rescale`, and k' without tensors; else (self, None)."""
        return self, None

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws from k / ∫k, shaped as `like` [..., D]. Raises: ValueError if no sampler is known."""
        raise ValueError(
            f"{self!r} cannot be sampled; use a Gaussian, Laplace, Matern or RationalQuadratic kernel to sample a KDE."
        )

    @property
    def shadow(self) -> Kernel | None:
        """The kernel H whose gradient kernel is k / shadow_scale (Cheng 1995); None if there is none.

        The mean shift under k ascends the density of its shadow.
        """
        return None

    @property
    def shadow_scale(self) -> float | Tensor:
        """c in: mean shift under k = c (f_H / f_k) ∇log f_H, f unnormalised sums; length², a matrix if h is one.

        Raises:
            ValueError: If there is no shadow.
        """
        raise ValueError(
            f"{self!r} has no shadow, so its mean shift ascends no density of this form; a Gaussian's does."
        )


@dataclass(frozen=True, eq=False, repr=False)
class LengthScaleKernel(Kernel):
    r"""A kernel of r / h, with h the length scale: a number, or a tensor that is the same for all points of a cloud.

    Tensors are [] or [D] (per dimension), [..., 1, D] or [..., 1, 1] (also per batch element), or the lower triangular
    Cholesky factor L [..., D, D] of a matrix H = L Lᵀ of squared lengths, so that r² = (x - y)ᵀ H⁻¹ (x - y). Gradients
    flow to them. They are handled here, once: space is divided by the tensor, x / h or L⁻¹ x, and the kernel of length
    scale 1 does the rest.
    Subclasses define `_log`, `_log_norm` and `_gradient_kernel` for a number h, and `_noise`, `_shadow` and
    `_shadow_scale` if they exist.

    Two kernels are equal if their classes and parameters are; tensors are compared by value, hashed by shape.
    """

    length_scale: float | Tensor

    def __post_init__(self):
        object.__setattr__(self, "length_scale", as_length_scale(self.length_scale))

    @property
    def h(self) -> float:
        """The length scale as a number, for formulas."""
        assert not isinstance(self.length_scale, Tensor)
        return self.length_scale

    def _log(self, sq: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_norm(self, dim: int) -> float | None:
        raise NotImplementedError

    def _gradient_kernel(self) -> Kernel:
        raise NotImplementedError

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return super().noise(like, generator)

    def _shadow(self) -> LengthScaleKernel | None:
        return None

    def _shadow_scale(self) -> float:
        return super().shadow_scale  # type: ignore[return-value]

    def standardize(self) -> tuple[LengthScaleKernel, Tensor | None]:
        if isinstance(self.length_scale, Tensor):
            return dataclasses.replace(self, length_scale=1.0), self.length_scale
        return self, None

    def log(self, sq: Tensor) -> Tensor:
        kernel, scale = self.standardize()
        return kernel._log(sq if scale is None else divide_square(sq, scale))

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        kernel, scale = self.standardize()
        if scale is not None:
            _, x, y = rescale(scale, x, y)
        return Kernel.log_pairs(kernel, x, y)

    def log_norm(self, dim: int) -> float | Tensor | None:
        kernel, scale = self.standardize()
        return rescaled_log_norm(kernel._log_norm(dim), scale, dim)

    @property
    def gradient_kernel(self) -> Kernel:
        kernel, scale = self.standardize()
        found = kernel._gradient_kernel()
        return found if scale is None else Anisotropic(found, scale)

    def covector(self, shift: Tensor) -> Tensor:
        return covector(shift, self.standardize()[1])

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        kernel, scale = self.standardize()
        if scale is None:
            return kernel._noise(like, generator)
        check_dimension(scale, like)
        return multiply(kernel._noise(like, generator), scale.detach().to(like))

    @property
    def shadow(self) -> Kernel | None:
        kernel, scale = self.standardize()
        found = kernel._shadow()
        if found is None or scale is None:
            return found
        return dataclasses.replace(found, length_scale=found.h * scale)

    @property
    def shadow_scale(self) -> float | Tensor:
        kernel, scale = self.standardize()
        if scale is None:
            return kernel._shadow_scale()
        return kernel._shadow_scale() * (scale @ scale.mT if is_matrix(scale) else scale.square())

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, its = vars(self), vars(other)
        return all(_same(mine[f.name], its[f.name]) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return hash((type(self), *(v.shape if isinstance(v, Tensor) else v for v in values)))

    def __repr__(self) -> str:
        shown = (f"{f.name}={describe(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Scaled(Kernel):
    """exp(log_scale) times another kernel, such as the gradient kernels of most kernels."""

    kernel: Kernel
    log_scale: float

    def log(self, sq: Tensor) -> Tensor:
        return self.kernel.log(sq) + self.log_scale

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kernel.log_pairs(x, y) + self.log_scale

    def log_norm(self, dim: int) -> float | Tensor | None:
        inner = self.kernel.log_norm(dim)
        return None if inner is None else inner - self.log_scale

    @property
    def gradient_kernel(self) -> Kernel:
        return Scaled(self.kernel.gradient_kernel, self.log_scale)

    def covector(self, shift: Tensor) -> Tensor:
        return self.kernel.covector(shift)

    def standardize(self) -> tuple[Kernel, Tensor | None]:
        kernel, scale = self.kernel.standardize()
        return (self if scale is None else Scaled(kernel, self.log_scale)), scale

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.kernel.noise(like, generator)

    @property
    def shadow(self) -> Kernel | None:
        return self.kernel.shadow

    @property
    def shadow_scale(self) -> float | Tensor:
        return self.kernel.shadow_scale * math.exp(self.log_scale)


def unscaled(kernel: Kernel) -> tuple[Kernel, float]:
    """(k', log c) with k = c k' and k' no multiple of another kernel."""
    log_scale = 0.0
    while isinstance(kernel, Scaled):
        kernel, log_scale = kernel.kernel, log_scale + kernel.log_scale
    return kernel, log_scale


@dataclass(frozen=True, eq=False)
class Anisotropic(Kernel):
    """k(x / l, y / l) for a tensor l: the gradient kernels of kernels whose length scale is a tensor."""

    kernel: Kernel
    length_scale: Tensor

    def log(self, sq: Tensor) -> Tensor:
        return self.kernel.log(divide_square(sq, self.length_scale))

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        _, x, y = rescale(self.length_scale, x, y)
        return self.kernel.log_pairs(x, y)

    def log_norm(self, dim: int) -> float | Tensor | None:
        return rescaled_log_norm(self.kernel.log_norm(dim), self.length_scale, dim)

    @property
    def gradient_kernel(self) -> Kernel:
        return Anisotropic(self.kernel.gradient_kernel, self.length_scale)

    def covector(self, shift: Tensor) -> Tensor:
        return covector(shift, self.length_scale)

    def standardize(self) -> tuple[Kernel, Tensor]:
        return self.kernel, self.length_scale

    def __repr__(self) -> str:
        return f"Anisotropic({self.kernel!r}, length_scale={describe(self.length_scale)})"


def as_kernels(kernel: Kernel | Sequence[Kernel]) -> tuple[Kernel, ...]:
    """One kernel or several as a tuple. Raises: ValueError if there is none."""
    kernels = (kernel,) if isinstance(kernel, Kernel) else tuple(kernel)
    if not kernels:
        raise ValueError(
            "kernel is empty; wanted one kernel or several, such as [Gaussian(0.1), Gaussian(1.0)]."
        )
    return kernels


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a.double(), b.to(a.device).double()))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
