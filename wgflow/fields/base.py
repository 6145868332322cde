r"""The protocol of velocity fields, and the algebra of their values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import NamedTuple

from torch import Tensor

from wgflow.arguments import checked, widened
from wgflow.distances import distances
from wgflow.kernels import Kernel, as_kernels
from wgflow.reductions import (
    check_clouds,
    kernel_shift_f64,
    log_total,
    require_unsharded,
)

__all__ = ["Field", "InOwnUnit", "Mixture", "Normalized", "Relative", "Standardized"]

RMS_FLOOR = 1e-8  # below it a field is taken to vanish and is not scaled up
LENGTH_FLOOR = 1e-8


class InOwnUnit(NamedTuple):
    """A field in the unit of length in which its regression loss is measured."""

    velocity: Tensor  # V / unit, [..., N, D]
    unit: Tensor | float  # a length
    magnitude: Tensor  # the rms of V / unit before any normalisation of V; without gradient


class Field(ABC):
    r"""A velocity field V(x; pos, neg), as an immutable value.

    Fields are called, compared, hashed and printed, and combined: `a + b`, `a - b`, `0.5 * a`, `a / 2`,
    `a.normalized()`, `a.relative()`, `a.standardized()` are fields again.
    """

    @abstractmethod
    def __call__(
        self,
        x: Tensor,
        pos: Tensor,
        *,
        neg: Tensor | None = None,
        pos_weights: Tensor | None = None,
        neg_weights: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the field.

        Args:
            x: [..., N, D] generated points, where the field is evaluated.
            pos: [..., P, D] positives, which attract.
            neg: [..., M, D] negatives, which repel. None: the points `x` themselves; whether a point is then among
                its own negatives is stated by each field.
            pos_weights: [..., P], w >= 0. None: equal weights.
            neg_weights: [..., M], w >= 0. None: equal weights.

        Returns:
            [..., N, D] velocities, differentiable in every tensor. Losses detach them, fields do not.

        Raises:
            ValueError: on shapes, dtypes, devices or weights that do not fit, on empty sets, and on negatives passed
                to a field that has none.
        """

    def normalized(self) -> Field:
        """V / rms(V), one rms over the whole batch: the field without its magnitude."""
        return Normalized(self)

    def relative(self) -> Field:
        """The field with its lengths as fractions of the mean distance between generated points and positives."""
        return Relative(self)

    def standardized(self) -> Field:
        """The field with the feature-wise normalisation of drifting models: see `Standardized`."""
        return Standardized(self)

    def check_scalable(self) -> None:
        """Refuse relative lengths where those of the field are lengths of x. Raises: ValueError."""
        return  # most fields scale

    def in_own_unit(
        self,
        x: Tensor,
        pos: Tensor,
        *,
        neg: Tensor | None = None,
        pos_weights: Tensor | None = None,
        neg_weights: Tensor | None = None,
    ) -> InOwnUnit:
        """Evaluate the field in the unit of length in which its regression loss is measured.

        The unit is 1, that of `x`, except for `PublishedField` and `Standardized`. Arguments as for the call.
        """
        V = self(x, pos, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
        return InOwnUnit(V, 1.0, rms(V.detach()))

    def __repr__(self) -> str:
        settings = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(settings)})"

    def __add__(self, other: object) -> Field:
        if not isinstance(other, Field):
            return NotImplemented
        return Mixture.of(_terms(self) + _terms(other))

    def __radd__(self, other: object) -> Field:
        # sum() starts with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> Field:
        return self + (-1 * other) if isinstance(other, Field) else NotImplemented

    def __neg__(self) -> Field:
        return -1 * self

    def __mul__(self, factor: object) -> Field:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            return NotImplemented
        return Mixture.of([(float(factor) * w, field) for w, field in _terms(self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Field:
        return self * (1 / divisor) if isinstance(divisor, Real) else NotImplemented


@dataclass(frozen=True, repr=False)
class Mixture(Field):
    """The weighted sum Σ w_i V_i of fields, which all see the same points, positives and negatives.

    Made by `+` and `*`; multiples of a mixture multiply its weights, so that 0.5 * (a + b) == 0.5 * a + 0.5 * b.
    """

    weights: tuple[float, ...]
    fields: tuple[Field, ...]

    @classmethod
    def of(cls, terms: Sequence[tuple[float, Field]]) -> Mixture:
        """The mixture of (weight, field) pairs."""
        weights, fields = zip(*terms, strict=True)
        return cls(weights, fields)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        total: Tensor | None = None
        for w, field in zip(self.weights, self.fields, strict=True):
            V = field(x, pos, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
            total = V.mul(w) if total is None else total.add(V, alpha=w)
        return total  # type: ignore[return-value]

    def check_scalable(self) -> None:
        for field in self.fields:
            field.check_scalable()

    def __repr__(self) -> str:
        terms = zip(self.weights, self.fields, strict=True)
        return " + ".join(f"{field}" if w == 1 else f"{w:g} * {field}" for w, field in terms)


@dataclass(frozen=True, repr=False)
class Normalized(Field):
    """V / rms(V), the root of the mean of V² over all elements of the batch: see `Field.normalized`.

    Fields with an rms below 1e-8 are divided by 1e-8. One scalar for the whole batch, so it has no meaning on shards.
    """

    field: Field

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        require_unsharded("a normalized field")
        V = self.field(x, pos, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
        return V / rms(V, RMS_FLOOR)

    def normalized(self) -> Field:
        return self

    def check_scalable(self) -> None:
        self.field.check_scalable()

    def __repr__(self) -> str:
        return f"{_operand(self.field)}.normalized()"


@dataclass(frozen=True, repr=False)
class Relative(Field):
    """s V(x/s; pos/s, neg/s), s = E|x - y| the mean distance of points and positives: see `Field.relative`.

    A bandwidth of 0.2 is then a fifth of that distance, whatever the units and the dimension of x. The result is a
    length, and scales with x. Gradients pass through s too. s is at least 1e-8: choose units in which it is.

    Raises:
        ValueError: If the field, or a part of it, has lengths that stay those of x, such as a score of its own.
    """

    field: Field

    def __post_init__(self) -> None:
        self.field.check_scalable()

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        s = mean_distance(x, pos, pos_weights)
        neg = None if neg is None else neg / s
        V = self.field(x / s, pos / s, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
        return s * V

    def relative(self) -> Field:
        return self

    def __repr__(self) -> str:
        return f"{_operand(self.field)}.relative()"


@dataclass(frozen=True, repr=False)
class Standardized(Field):
    r"""The field scaled as in drifting models (Deng et al. 2026, Eqs. 21 and 25), so that features of any scale and
    dimension contribute alike to a loss.

    With s = E|x - y| the mean distance of points and positives, coordinates are divided by s / sqrt(D), the unit in
    which the loss is measured; there V has an rms of 1 over the whole batch. Lengths of the field, such as bandwidths,
    are fractions of s. Fields with an rms below 1e-8 are divided by 1e-8.

    Raises:
        ValueError: If the field, or a part of it, has lengths that stay those of x, such as a score of its own.
    """

    field: Field

    def __post_init__(self) -> None:
        self.field.check_scalable()

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        V, unit, _ = self.in_own_unit(
            x, pos, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights
        )
        return V * unit

    def in_own_unit(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> InOwnUnit:
        s, root = mean_distance(x, pos, pos_weights), x.shape[-1] ** 0.5
        neg = None if neg is None else neg / s
        V = self.field(x / s, pos / s, neg=neg, pos_weights=pos_weights, neg_weights=neg_weights)
        V = root * V
        return InOwnUnit(V / rms(V, RMS_FLOOR), s / root, rms(V.detach()))

    def standardized(self) -> Field:
        return self

    def __repr__(self) -> str:
        return f"{_operand(self.field)}.standardized()"


@checked
def mean_distance(x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
    """E|x - y| over the whole batch, a scalar length >= 1e-8; the y of each group weighted by `weights` [..., P].

    Raises:
        ValueError: inside `wgflow.distributed.sharded`, and on clouds or weights that do not fit.
    """
    require_unsharded("a relative field")
    check_clouds(x, pos, None, False, ("x", "pos"), weights=weights)
    distance = distances(x, pos)
    if weights is not None:
        w = weights.to(distance.dtype)
        distance = (distance * w.unsqueeze(-2)).sum(-1) / w.sum(-1, keepdim=True)
    return distance.mean().clamp_min(LENGTH_FLOOR).to(x.dtype)


def rms(V: Tensor, floor: float = 0.0) -> Tensor:
    """The root mean square over all elements, a scalar that is at least `floor`."""
    # The floor applies before the root, whose derivative at 0 is infinite.
    return widened(V).square().mean().clamp_min(floor**2).sqrt()


def mean_kernel_gradient(
    x: Tensor, y: Tensor, gradient: Kernel, weights: Tensor | None, skip_self: bool = False
) -> Tensor:
    r"""∇_x of the weighted mean of k(x, y_j): mean_j s(x, y_j) (y_j - x), with s the `gradient` kernel of k."""
    log_mass, shift = kernel_shift_f64(x, y, kernel=gradient, weights=weights, skip_self=skip_self)
    mean = (log_mass - log_total(y, weights, skip_self)).exp().unsqueeze(-1)
    return mean * gradient.covector(shift)


def store_kernels(field: Field) -> None:
    """Store a list of kernels as a tuple, so that the value is hashable, and one kernel in a list as itself."""
    kernels = as_kernels(field.kernel)  # type: ignore[attr-defined]
    object.__setattr__(field, "kernel", kernels[0] if len(kernels) == 1 else kernels)


def refuse_negatives(field: Field, neg: Tensor | None, neg_weights: Tensor | None) -> None:
    """Refuse negatives where the field has none. Raises: ValueError."""
    if neg is not None or neg_weights is not None:
        name = "neg" if neg is not None else "neg_weights"
        raise ValueError(
            f"{name} was passed to a {type(field).__name__}, in which only the points themselves repel; leave it out, "
            "or use a field with negatives such as EnergyField()."
        )


def refuse_lone_weights(neg: Tensor | None, neg_weights: Tensor | None) -> None:
    """Refuse weights of negatives that were not passed. Raises: ValueError."""
    if neg is None and neg_weights is not None:
        raise ValueError(
            "neg_weights came without neg; the points themselves count equally. Pass neg=x with weights."
        )


def _terms(field: Field) -> list[tuple[float, Field]]:
    if isinstance(field, Mixture):
        return list(zip(field.weights, field.fields, strict=True))
    return [(1.0, field)]


def _operand(field: Field) -> str:
    return f"({field})" if isinstance(field, Mixture) else f"{field}"
