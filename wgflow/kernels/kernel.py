"""Kernels as values: the interface, the treatment of length scales, and multiples of kernels."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wgflow.arguments import checkable
from wgflow.distances import sq_distances


class Kernel(ABC):
    """A radial kernel k(x, y) = k(|x - y|²). A frozen value: printable, hashable, compared by what it holds."""

    @abstractmethod
    def log(self, sq: Tensor) -> Tensor:
        """log k at squared distances `sq` (length²), elementwise; -inf where k vanishes or is undefined."""

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """log k(x_i, y_j) for all pairs: x [..., N, D], y [..., M, D] -> [..., N, M], in float32 at least."""
        return self.log(sq_distances(x, y))

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
        """(k', l) with k(x, y) = k'(x / l, y / l) and k' without tensors; (self, None) if it has none already."""
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
        """c in: mean shift under k = c (f_H / f_k) ∇log f_H, f unnormalised sums; length².

        Raises:
            ValueError: If there is no shadow.
        """
        raise ValueError(
            f"{self!r} has no shadow, so its mean shift ascends no density of this form; a Gaussian's does."
        )


@dataclass(frozen=True, eq=False, repr=False)
class LengthScaleKernel(Kernel):
    r"""A kernel of r / h, with h the length scale: a number, or a tensor that is the same for all points of a cloud.

    Tensors are [] or [D] (per dimension), [..., 1, D] or [..., 1, 1] (also per batch element), and gradients flow to
    them. They are handled here, once: space is divided by the tensor, and the kernel of length scale 1 does the rest.
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
        return kernel._log(sq if scale is None else _divided(sq, scale))

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        kernel, scale = self.standardize()
        if scale is not None:
            _, x, y = rescale(scale, x, y)
        return Kernel.log_pairs(kernel, x, y)

    def log_norm(self, dim: int) -> float | Tensor | None:
        kernel, scale = self.standardize()
        return _log_norm(kernel._log_norm(dim), scale, dim)

    @property
    def gradient_kernel(self) -> Kernel:
        kernel, scale = self.standardize()
        found = kernel._gradient_kernel()
        return found if scale is None else Anisotropic(found, scale)

    def covector(self, shift: Tensor) -> Tensor:
        return _covector(shift, self.standardize()[1])

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        kernel, scale = self.standardize()
        if scale is None:
            return kernel._noise(like, generator)
        check_dimension(scale, like)
        return kernel._noise(like, generator) * scale.detach().to(like)

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
        return kernel._shadow_scale() * (1.0 if scale is None else scale.square())

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
        return self.kernel.log(_divided(sq, self.length_scale))

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        _, x, y = rescale(self.length_scale, x, y)
        return self.kernel.log_pairs(x, y)

    def log_norm(self, dim: int) -> float | Tensor | None:
        return _log_norm(self.kernel.log_norm(dim), self.length_scale, dim)

    @property
    def gradient_kernel(self) -> Kernel:
        return Anisotropic(self.kernel.gradient_kernel, self.length_scale)

    def covector(self, shift: Tensor) -> Tensor:
        return _covector(shift, self.length_scale)

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


def as_length_scale(value: Any) -> float | Tensor:
    """A number as float; a tensor, array or sequence of numbers as a floating tensor. Raises: ValueError.

    The values of a tensor are checked on the CPU only: on a GPU the check would wait for the device.
    """
    number = isinstance(value, (int, float, np.number)) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    )
    if number and not isinstance(value, bool):
        return positive("length_scale", float(value))
    if not isinstance(value, (Tensor, np.ndarray, list, tuple)):
        raise ValueError(
            f"length_scale = {value!r}; wanted a positive number, a length in the units of x, or a tensor of them. "
            "A usual start is a fraction (say 0.2) of the mean distance between points: 0.2 * torch.cdist(x, y).mean()."
        )
    scale = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    scale = scale if scale.is_floating_point() else scale.double()
    if scale.dim() > 1 and scale.shape[-2] != 1:
        raise ValueError(
            f"length_scale is {list(scale.shape)}; wanted [], [D], [..., 1, D] or [..., 1, 1]: the same for all points "
            "of a cloud. For one per batch element, length_scale[..., None, None]."
        )
    if checkable(scale):
        good = (scale.detach() > 0) & scale.detach().isfinite()
        if not bool(good.all()):
            raise ValueError(
                "length_scale holds a number that is not positive and finite; for a dimension without spread choose a "
                "length by hand: length_scale.clamp_min(...)."
            )
    return scale


def positive(name: str, value: float) -> float:
    """The value as a float. Raises: ValueError unless it is a positive finite number."""
    if (
        isinstance(value, (bool, Tensor))
        or not isinstance(value, (int, float, np.number, np.ndarray))
        or not 0 < value < math.inf
    ):
        hint = " It is a length in the units of x." if name in ("length_scale", "h") else ""
        raise ValueError(f"{name} = {value!r}; wanted a positive finite number.{hint}")
    return float(value)


def rescale(scale: Tensor, *clouds: Tensor) -> tuple[Tensor, ...]:
    """`(scale, *clouds / scale)` in float64: the quotient of float32 numbers would round away digits that sums keep.

    Raises:
        ValueError: If `scale` is of another dimension or device than the clouds [..., n, D].
    """
    for points in clouds:
        check_dimension(scale, points)
        if scale.dim() and scale.device != points.device:
            raise ValueError(
                f"length_scale is on {scale.device} and x on {points.device}; move one: length_scale.to(x.device)."
            )
    scale = scale.to(clouds[0].device, torch.float64)
    return scale, *(points.double() / scale for points in clouds)


def check_dimension(scale: Tensor, points: Tensor) -> None:
    """Refuse length scales of another dimension than the points. Raises: ValueError."""
    if scale.dim() and scale.shape[-1] not in (1, points.shape[-1]):
        raise ValueError(
            f"length_scale is {list(scale.shape)} but x has dimension {points.shape[-1]}; wanted one length for each "
            "dimension, or a last dimension of 1 for all."
        )


def describe(value: Any) -> str:
    """The repr of a parameter, of a tensor its shape only."""
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _divided(sq: Tensor, scale: Tensor) -> Tensor:
    if scale.dim() and scale.shape[-1] != 1:
        raise ValueError(
            f"length_scale is {list(scale.shape)}, one per dimension, so k is no function of the distance alone; "
            "read it at points: kernel.log_pairs(x, y)."
        )
    return sq / scale.square()


def _log_norm(norm: float | Tensor | None, scale: Tensor | None, dim: int) -> float | Tensor | None:
    """`norm` less Σ_d log scale_d, [] or [..., 1]: it broadcasts against a log mass [..., N]."""
    if norm is None or scale is None:
        return norm
    return norm - scale.expand(*scale.shape[:-1], dim).log().sum(-1)


def _covector(shift: Tensor, scale: Tensor | None) -> Tensor:
    return shift if scale is None else shift / scale.to(shift.device).square()


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b.to(a)))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
