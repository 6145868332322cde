r"""Fields on the unit sphere |x| = 1: tangential projections of Euclidean fields, and geodesic steps along them.

On the sphere exp(-|x - y|²/2h²) is the von Mises-Fisher kernel e^(κ (x·y - 1)) of concentration κ = 1/h².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checkable, checked, checked_constructor
from wgflow.fields.base import Field
from wgflow.reductions import check_clouds, check_no_nan

__all__ = ["SphereField", "exponential_map"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class SphereField(Field):
    r"""The tangential part (1 - x xᵀ) V of a field V at points of the unit sphere in R^D.

    The Riemannian gradient on the sphere is the projection of the gradient in space, so fields that are gradients of
    a functional stay so. With `DriftingField(Gaussian(h))`, κ = 1/h² times this field is the difference of the
    Riemannian scores of two von Mises-Fisher kernel density estimates.

    `x`, `pos` and `neg` must have unit norm up to rounding: ValueError otherwise. Move points by `exponential_map`.

    Args:
        field: a field in R^D, whose lengths are chords, at most 2.
    """

    field: Field

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        V = self.field(x, pos, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
        for name, points in (("x", x), ("pos", pos), ("neg", neg)):
            if points is not None:
                check_unit(points, name)
        at, V64 = x.double(), V.double()
        radial = (V64 * at).sum(-1, keepdim=True) / at.square().sum(-1, keepdim=True)
        return (V64 - radial * at).to(x.dtype)

    def relative(self) -> Field:
        return SphereField(self.field.relative())  # x / s would leave the sphere

    def check_scalable(self) -> None:
        raise ValueError(
            "a SphereField has points on the unit sphere, which a scaled or standardized sum would leave; make the "
            "fields inside relative: SphereField(field.relative())."
        )


@checked
def exponential_map(x: Tensor, V: Tensor) -> Tensor:
    r"""Follow the geodesic from x in the direction V for the length |V|: x cos|V| + V sin|V| / |V|.

    Args:
        x: [..., N, D] points of the unit sphere.
        V: [..., N, D] tangent vectors, V·x = 0, such as a step times a `SphereField`.

    Returns:
        [..., N, D] points of the unit sphere, twice differentiable in both.

    Raises:
        ValueError: on points off the sphere, shapes or dtypes that differ, and NaN.
    """
    check_clouds(x, V, None, False, ("x", "V"))
    if x.shape != V.shape:
        raise ValueError(
            f"V is {list(V.shape)} but x is {list(x.shape)}; wanted one vector for each point."
        )
    check_no_nan(V, "V")
    check_unit(x, "x")
    at, V64 = x.double(), V.double()
    sq = V64.square().sum(-1, keepdim=True)
    # Both factors are smooth in |V|²; near 0 their series have the derivatives that those of |V| lack.
    near = sq < 1e-4
    angle = torch.where(near, 1.0, sq).sqrt()
    cos = torch.where(near, 1 - sq / 2 * (1 - sq / 12 * (1 - sq / 30)), angle.cos())
    sinc = torch.where(near, 1 - sq / 6 * (1 - sq / 20 * (1 - sq / 42)), angle.sin() / angle)
    moved = at * cos + V64 * sinc
    return torch.nn.functional.normalize(moved, dim=-1).to(x.dtype)


def check_unit(points: Tensor, name: str) -> None:
    """Refuse points off the unit sphere. Raises: ValueError."""
    if points.shape[-2] == 0 or not checkable(points):
        return
    norms = points.detach().double().norm(dim=-1)
    worst = norms.flatten()[(norms - 1).abs().argmax()].item()
    if not abs(worst - 1) <= max(1e-4, 4 * torch.finfo(points.dtype).eps):
        raise ValueError(
            f"{name} has a point of norm {worst:.6g}; wanted points on the unit sphere: "
            f"torch.nn.functional.normalize({name}, dim=-1)."
        )
