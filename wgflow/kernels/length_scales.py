"""Tensors as length scales: validation, and changes of coordinates by lengths or Cholesky factors.

In all functions `scale` is a tensor of lengths [], [D], [..., 1, D] or [..., 1, 1], or the lower triangular factor L
[..., D, D] of a matrix H = L Lᵀ of squared lengths.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wgflow.arguments import checkable


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
    if is_matrix(scale) and scale.shape[-2] != scale.shape[-1]:
        raise ValueError(
            f"length_scale is {list(scale.shape)}; wanted [], [D], [..., 1, D] or [..., 1, 1], the same for all points "
            "of a cloud, or a Cholesky factor [..., D, D]. For one per batch element, length_scale[..., None, None]."
        )
    if checkable(scale):
        lengths = scale.detach()
        if is_matrix(scale):
            if not bool((lengths.isfinite() & (lengths.triu(1) == 0)).all()):
                raise ValueError(
                    f"length_scale is a matrix {list(scale.shape)} that is not lower triangular and finite; wanted the "
                    "Cholesky factor of the matrix H of squared lengths: torch.linalg.cholesky(H)."
                )
            lengths = lengths.diagonal(dim1=-2, dim2=-1)
        good = (lengths > 0) & lengths.isfinite()
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


def is_matrix(scale: Tensor) -> bool:
    """Return True for a Cholesky factor [..., D, D]; in one dimension it is a length [..., 1, 1]."""
    return scale.dim() > 1 and scale.shape[-2] != 1


def multiply(vectors: Tensor, scale: Tensor) -> Tensor:
    """Vectors [..., n, D] times lengths, L v for a matrix: from the coordinates of the kernel back to those of x."""
    # tril: no gradient above the diagonal, so that an optimiser keeps a triangular parameter triangular.
    return vectors @ scale.tril().mT if is_matrix(scale) else vectors * scale


def divide(vectors: Tensor, scale: Tensor) -> Tensor:
    """Vectors [..., n, D] divided by lengths, L⁻¹ v for a matrix."""
    if not is_matrix(scale):
        return vectors / scale
    return torch.linalg.solve_triangular(scale.mT, vectors, upper=True, left=False)


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
    return scale, *(divide(points.double(), scale) for points in clouds)


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


def divide_square(sq: Tensor, scale: Tensor) -> Tensor:
    """Squared distances divided by one length squared. Raises: ValueError for lengths that depend on the direction."""
    if scale.dim() and scale.shape[-1] != 1:
        raise ValueError(
            f"length_scale is {list(scale.shape)}, not the same in every direction, so k is no function of distance; "
            "read it at points: kernel.log_pairs(x, y)."
        )
    return sq / scale.square()


def rescaled_log_norm(
    norm: float | Tensor | None, scale: Tensor | None, dim: int
) -> float | Tensor | None:
    """`norm` less Σ_d log scale_d, [] or [..., 1]: it broadcasts against a log mass [..., N]."""
    if norm is None or scale is None:
        return norm
    if is_matrix(scale):
        scale = scale.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return norm - scale.expand(*scale.shape[:-1], dim).log().sum(-1)


def covector(shift: Tensor, scale: Tensor | None) -> Tensor:
    """Vectors [..., n, D] divided by lengths², H⁻¹ v for a matrix; unchanged without lengths."""
    if scale is None:
        return shift
    scale = scale.to(shift)
    if not is_matrix(scale):
        return shift / scale.square()
    back = divide(shift, scale)  # L⁻¹ v, and L⁻ᵀ L⁻¹ v = H⁻¹ v
    return torch.linalg.solve_triangular(scale, back, upper=False, left=False)
