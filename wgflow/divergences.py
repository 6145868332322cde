r"""f-divergences D_f(q || p) = ∫ p f(q / p), and the weight that each of them gives a drifting field.

The W2 gradient flow of D_f moves q with v = -∇f'(r) = r f''(r) (∇log p - ∇log q), r = q / p. So every f-divergence
flow is the reverse-KL field times weight(log r) = r f''(r), and log r is known from the two sums of that field.
Below, a = p / (p + q). Sums are divergences again: `ForwardKL() + 0.5 * ChiSquare()`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from wgflow.kernels import positive

__all__ = [
    "Alpha",
    "ChiSquare",
    "Divergence",
    "ForwardKL",
    "Hellinger",
    "JensenShannon",
    "ReverseKL",
    "SkewKL",
]


@runtime_checkable
class Divergence(Protocol):
    """An f-divergence, read at log r = log q - log p. Those of this module have sums and positive multiples."""

    def f(self, log_ratio: Tensor) -> Tensor:
        """f(r), elementwise."""
        ...

    def weight(self, log_ratio: Tensor) -> Tensor:
        """r f''(r), dimensionless and positive, elementwise."""
        ...


class _Summable:
    """`a + b` and `2 * a` of divergences are divergences, whose f and weight are Σ λ f and Σ λ weight (λ > 0)."""

    def f(self, log_ratio: Tensor) -> Tensor:
        raise NotImplementedError

    def weight(self, log_ratio: Tensor) -> Tensor:
        raise NotImplementedError

    def __add__(self, other: object) -> _Sum:
        if not isinstance(other, Divergence):
            return NotImplemented
        return _Sum(_terms(self) + _terms(other))

    def __radd__(self, other: object) -> Divergence:
        # sum() starts with 0.
        if isinstance(other, Divergence):
            return _Sum(_terms(other) + _terms(self))
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: object) -> _Sum:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            return NotImplemented
        factor = positive("the factor of a divergence", float(factor))
        return _Sum(tuple((factor * w, d) for w, d in _terms(self)))

    __rmul__ = __mul__


@dataclass(frozen=True, repr=False)
class _Sum(_Summable):
    """Σ λ D of (λ, D) pairs, without common factors: 2 * (a + b) == 2 * a + 2 * b."""

    terms: tuple[tuple[float, Divergence], ...]

    def f(self, log_ratio: Tensor) -> Tensor:
        return torch.stack([w * d.f(log_ratio) for w, d in self.terms]).sum(0)

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.stack([w * d.weight(log_ratio) for w, d in self.terms]).sum(0)

    def __repr__(self) -> str:
        return " + ".join(f"{d}" if w == 1 else f"{w!r} * {d}" for w, d in self.terms)


def _terms(divergence: Divergence) -> tuple[tuple[float, Divergence], ...]:
    return divergence.terms if isinstance(divergence, _Sum) else ((1.0, divergence),)


@dataclass(frozen=True)
class ReverseKL(_Summable):
    """KL(q || p), f = r log r: the field of DFP Eq. 3. Weight 1: seeks modes, ignores what q does not reach."""

    def f(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.exp() * log_ratio

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.ones_like(log_ratio)


@dataclass(frozen=True)
class ForwardKL(_Summable):
    """KL(p || q), f = -log r. Weight 1/r: covers modes; unbounded where q is small, so clip it or shorten the step."""

    def f(self, log_ratio: Tensor) -> Tensor:
        return -log_ratio

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio).exp()


@dataclass(frozen=True)
class JensenShannon(_Summable):
    """f = r log r - (1 + r) log((1 + r) / 2). Weight a: bounded, switches off where only q lives."""

    def f(self, log_ratio: Tensor) -> Tensor:
        r = log_ratio.exp()
        return r * log_ratio - (1 + r) * (softplus(log_ratio) - math.log(2))

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio).sigmoid()


@dataclass(frozen=True)
class SkewKL(_Summable):
    """KL(p || (p + q) / 2), f = -log((1 + r) / 2). Weight a (1 - a): that of the joint softmax of the published
    drifting code.
    """

    def f(self, log_ratio: Tensor) -> Tensor:
        return math.log(2) - softplus(log_ratio)

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.sigmoid() * (-log_ratio).sigmoid()


@dataclass(frozen=True)
class ChiSquare(_Summable):
    """Pearson's ∫ (q - p)² / p, f = (r - 1)². Weight 2r: strongest where q overshoots, unbounded there."""

    def f(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.expm1().square()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 2 * log_ratio.exp()


@dataclass(frozen=True)
class Hellinger(_Summable):
    """Squared Hellinger, f = (sqrt r - 1)². Weight 1 / (2 sqrt r): halfway between reverse and forward KL."""

    def f(self, log_ratio: Tensor) -> Tensor:
        return (0.5 * log_ratio).expm1().square()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 0.5 * (-0.5 * log_ratio).exp()


@dataclass(frozen=True)
class Alpha(_Summable):
    """f = (r^alpha - 1 - alpha (r - 1)) / (alpha (alpha - 1)). Weight r^(alpha - 1): from covering to seeking.

    alpha = 0 is forward KL, 1 reverse KL, 1/2 twice Hellinger, 2 half of chi-square (each up to a term linear in r).
    """

    alpha: float

    def __post_init__(self):
        if not math.isfinite(self.alpha):
            raise ValueError(
                f"alpha = {self.alpha!r}; wanted a finite number: 0 is forward KL, 1 reverse KL."
            )

    def f(self, log_ratio: Tensor) -> Tensor:
        r, linear = log_ratio.exp(), log_ratio.expm1()
        if self.alpha == 1:
            return r * log_ratio - linear
        if self.alpha == 0:
            return linear - log_ratio
        if abs(beyond := self.alpha - 1) < 1e-3:  # where the digits of the form below cancel
            return (r * (beyond * log_ratio).expm1() / beyond - linear) / self.alpha
        return ((self.alpha * log_ratio).expm1() / self.alpha - linear) / (self.alpha - 1)

    def weight(self, log_ratio: Tensor) -> Tensor:
        return ((self.alpha - 1) * log_ratio).exp()
