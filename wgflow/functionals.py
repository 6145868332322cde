r"""Functionals F of the empirical measure of particles x [..., N, D], and the velocities of their W2 gradient flows.

Each has `value(x)`, the quantity it is named after, and `velocity(x)` = -factor N ∇_i value(x), where `factor` is a
constant of the class: 1, 1/2 for squared distances, and -1 for the log-likelihood, which is to be maximised. Along the
flow dF/dt = -mean|v|² / factor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.density import KDE
from wgflow.distances import sq_distances
from wgflow.divergences import Divergence
from wgflow.fields import blob_field, check_beta, energy_field, mean_kernel_gradient, mmd_field
from wgflow.kernels import Kernel, as_kernels, describe, positive
from wgflow.reductions import (
    check_clouds,
    check_no_nan,
    check_weights,
    kernel_shift_f64,
    require_unsharded,
)
from wgflow.transport import Between, Within, cost, plan

__all__ = [
    "MMD",
    "BlobDivergence",
    "BlobKL",
    "EnergyDistance",
    "Functional",
    "Interaction",
    "Likelihood",
    "Potential",
    "Sinkhorn",
]

FARTHEST = 1e150  # a distance whose square is finite


class Functional(ABC):
    """A functional of particles. `a + b`, `a - b`, `0.5 * a` and `a / 2` are functionals whose `factor` is 1."""

    factor: ClassVar[float] = 1.0

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The functional at the empirical measure of x.

        Args:
            x: [..., N, D] particles.

        Returns:
            [...], one value for each cloud; differentiable.
        """

    @checked
    def velocity(self, x: Tensor) -> Tensor:
        """-factor N ∇_i value(x), by autograd unless a class has a closed form.

        Args:
            x: [..., N, D] particles.

        Returns:
            [..., N, D], in the units of the value per length.
        """
        # Outside of inference mode, whose tensors have no derivatives.
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(at).sum(), at)
        return -self.factor * x.shape[-2] * gradient

    def __add__(self, other: object) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return _Sum(*zip(*_terms(self) + _terms(other), strict=True))

    def __radd__(self, other: object) -> Functional:
        # sum() starts with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> Functional:
        return self + (-1 * other) if isinstance(other, Functional) else NotImplemented

    def __neg__(self) -> Functional:
        return -1 * self

    def __mul__(self, factor: object) -> Functional:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            return NotImplemented
        return _Sum(*zip(*[(float(factor) * w, F) for w, F in _terms(self)], strict=True))

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Functional:
        return self * (1 / divisor) if isinstance(divisor, Real) else NotImplemented

    def __repr__(self) -> str:
        settings = [f"{f.name}={describe(getattr(self, f.name))}" for f in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(settings)})"


@dataclass(frozen=True, repr=False)
class _Sum(Functional):
    """Σ w_i F_i."""

    weights: tuple[float, ...]
    functionals: tuple[Functional, ...]

    def value(self, x: Tensor) -> Tensor:
        terms = zip(self.weights, self.functionals, strict=True)
        return torch.stack([w * F.value(x) for w, F in terms]).sum(0)

    def velocity(self, x: Tensor) -> Tensor:
        terms = zip(self.weights, self.functionals, strict=True)
        return torch.stack([w / F.factor * F.velocity(x) for w, F in terms]).sum(0)

    def __repr__(self) -> str:
        terms = zip(self.weights, self.functionals, strict=True)
        return " + ".join(f"{F}" if w == 1 else f"{w:g} * {F}" for w, F in terms)


@runtime_checkable
class Density(Protocol):
    """A density with a known logarithm and score: a `KDE`, a `toy.GaussianMixture`, or anything alike."""

    def log_density(self, x: Tensor) -> Tensor: ...

    def score(self, x: Tensor) -> Tensor: ...


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Potential(Functional):
    """The potential energy mean_i U(x_i): independent particles that descend U.

    Args:
        energy: U, [..., N, D] -> [..., N], differentiable.
    """

    energy: Callable[[Tensor], Tensor]

    def value(self, x: Tensor) -> Tensor:
        return self.energy(x).mean(-1)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Interaction(Functional):
    """The interaction energy mean_ij k(x_i, x_j) / 2, self pairs included: particles repel each other.

    Args:
        kernel: any kernel with a gradient; it need not have finite mass.
    """

    kernel: Kernel

    def value(self, x: Tensor) -> Tensor:
        log_mass, _ = kernel_shift_f64(x, x, kernel=self.kernel)
        return (log_mass.exp().mean(-1) / (2 * x.shape[-2])).to(x.dtype)

    def velocity(self, x: Tensor) -> Tensor:
        return -mean_kernel_gradient(x, x, self.kernel.gradient_kernel, None).to(x.dtype)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class MMD(Functional):
    r"""The squared maximum mean discrepancy to weighted samples (Gretton et al. 2012), unbiased in x.

    MMD² = mean_{i≠j} k(x_i, x_j) - 2 Σ_k w_k mean_i k(x_i, y_k) + Σ_kl w_k w_l k(y_k, y_l), Σ w = 1. Needs N >= 2; may
    be negative near equality. velocity = -(N/2) ∇_i MMD², which is `mmd_field`.

    Args:
        samples: [..., M, D].
        kernel: a characteristic kernel, or several whose sum is meant. For -|x - y| see `EnergyDistance`.
        weights: [..., M], w >= 0, of which only ratios matter; None: equal.
    """

    factor: ClassVar[float] = 0.5
    samples: Tensor
    kernel: Kernel | Sequence[Kernel]
    weights: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        w = _shares(self.samples, self.weights).double()
        points, samples, values = x.double(), self.samples.double(), []
        for k in as_kernels(self.kernel):
            within, _ = kernel_shift_f64(points, points, kernel=k, skip_self=True)
            across, _ = kernel_shift_f64(points, samples, kernel=k, weights=w)
            own, _ = kernel_shift_f64(samples, samples, kernel=k, weights=w)
            values.append(
                within.exp().mean(-1) / (x.shape[-2] - 1)
                - 2 * across.exp().mean(-1)
                + (w * own.exp()).sum(-1)
            )
        return torch.stack(values).sum(0).to(x.dtype)  # float64 until the end: the terms cancel

    def velocity(self, x: Tensor) -> Tensor:
        return mmd_field(x, self.samples, kernel=self.kernel, pos_weights=self.weights)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class EnergyDistance(Functional):
    r"""The energy distance to samples (Székely and Rizzo 2013), generalised to |x - y|^β, unbiased in x.

    2 mean|x_i-y_k|^β - mean_{i≠j}|x_i-x_j|^β - mean_kl|y_k-y_l|^β. Needs N >= 2; may be negative near equality.
    velocity = -(N/2) ∇_i of it, which is `energy_field`.

    Args:
        samples: [..., M, D].
        beta: 0 < beta < 2; 1 for the energy distance itself.
    """

    factor: ClassVar[float] = 0.5
    samples: Tensor
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def value(self, x: Tensor) -> Tensor:
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        check_clouds(x, x, None, True, ("x", "x"))
        n, a, y = x.shape[-2], x.double(), self.samples.double()
        across, own = (self._powers(t, y).mean((-2, -1)) for t in (a, y))
        within = self._powers(a, a).sum((-2, -1)) / (n * (n - 1))
        return (2 * across - within - own).to(x.dtype)  # rounded last: the terms cancel

    def velocity(self, x: Tensor) -> Tensor:
        return energy_field(x, self.samples, beta=self.beta)

    def _powers(self, x: Tensor, y: Tensor) -> Tensor:
        sq = sq_distances(x, y)
        # Zeros are replaced before the power, whose derivative at 0 may be infinite.
        return torch.where(sq == 0, 1.0, sq).pow(self.beta / 2) * (sq != 0)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class BlobKL(Functional):
    """mean log q_h(x_i) - mean log p(x_i), q_h the KDE of the particles: the reverse KL divergence of the blob method.

    Args:
        target: p, a `KDE` of data or a known density with `log_density` (up to a constant) and `score`.
        kernel: of q_h.
    """

    target: Density
    kernel: Kernel

    def value(self, x: Tensor) -> Tensor:
        return (KDE(x, self.kernel).log_density(x) - self.target.log_density(x)).mean(-1)

    def velocity(self, x: Tensor) -> Tensor:
        return blob_field(x, self.target.score, kernel=self.kernel)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class BlobDivergence(Functional):
    """mean f(r_i) / r_i, r = q_h / p: D_f(q || p) = ∫ q f(r)/r with a smoothed q inside; `BlobKL` is its reverse KL.

    Args:
        target: p, whose log density must be *normalised* unless the divergence is reverse KL.
        kernel: of q_h.
        divergence: its f.
    """

    target: Density
    kernel: Kernel
    divergence: Divergence

    def value(self, x: Tensor) -> Tensor:
        log_r = KDE(x, self.kernel).log_density(x) - self.target.log_density(x)
        return (self.divergence.f(log_r) * (-log_r).exp()).mean(-1)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Likelihood(Functional):
    """The log-likelihood Σ_k w_k log q_h(y_k), Σ w = 1, of samples under the KDE q_h of the particles: to be maximised.

    velocity = +N ∇_i of it (`factor` is -1): it lowers the forward KL(p || q_h), which is the negative log-likelihood
    less the entropy of p. For a Gaussian kernel it is N / (h² Σw) times `likelihood_field`.

    Args:
        samples: [..., M, D].
        kernel: of q_h.
        weights: [..., M], w >= 0, of which only ratios matter; None: equal.
    """

    factor: ClassVar[float] = -1.0
    samples: Tensor
    kernel: Kernel
    weights: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        log_q = KDE(x, self.kernel).log_density(self.samples)
        return (_shares(self.samples, self.weights) * log_q).sum(-1)

    def velocity(self, x: Tensor) -> Tensor:
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        log_q, _ = kernel_shift_f64(self.samples, x, kernel=self.kernel)
        log_pull, shift = kernel_shift_f64(
            x,
            self.samples,
            kernel=self.kernel.gradient_kernel,
            weights=_shares(self.samples, self.weights),
            log_weights=-log_q,
        )
        pull = (log_pull + math.log(x.shape[-2])).exp().unsqueeze(-1)
        return (pull * self.kernel.covector(shift)).to(x.dtype)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Sinkhorn(Functional):
    r"""The Sinkhorn divergence to samples with cost |x - y|², regularisation 2 blur² (Feydy et al. 2019).

    OT(x, y) - OT(x, x)/2 - OT(y, y)/2, OT the least Σ π |x - y|² + 2 blur² KL(π || equal weights ⊗ w). Squared length.
    velocity_i = -(N/2) ∇_i of it: the displacement of x_i to the mean of its partners, less the same within x.

    Plans are solved in float64 until their marginals err by less than 1e-9; if a small blur prevents that, a
    RuntimeWarning states the error. All pairs are held in memory, and a system of min(N, M) equations is solved some
    ten times. The value is twice differentiable in x, samples and the velocity once, not in the weights.

    Args:
        samples: [..., M, D].
        blur: a length.
        weights: [..., M], w >= 0, of which only ratios matter; None: equal.
    """

    factor: ClassVar[float] = 0.5
    samples: Tensor
    blur: float
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        positive("blur", self.blur)

    def value(self, x: Tensor) -> Tensor:
        values, (lead, problems) = [], self._problems(x)
        for a, b, w in problems:
            to, own, theirs = self._between(a, w), self._within(a), self._within(b, w)
            across = cost(sq_distances(a, b), to)
            within = cost(sq_distances(a, a), own) + cost(sq_distances(b, b), theirs)
            values.append(across - within / 2)
        return torch.stack(values).view(lead).to(x.dtype)

    def velocity(self, x: Tensor) -> Tensor:
        velocities, (lead, problems) = [], self._problems(x)
        for a, b, w in problems:
            towards = plan(sq_distances(a, b), self._between(a, w))
            away = plan(sq_distances(a, a), self._within(a))
            mass = (towards.sum(-1) - away.sum(-1)).unsqueeze(-1)
            velocities.append(len(a) * (towards @ b - away @ a - mass * a))
        return torch.stack(velocities).view(*lead, *x.shape[-2:]).to(x.dtype)

    def _problems(self, x: Tensor) -> tuple[torch.Size, Iterator[tuple[Tensor, ...]]]:
        """The leading shape, and (x [N, D], samples [M, D], shares [M]) of each element, in float64 and centred."""
        require_unsharded("Sinkhorn")
        check_clouds(x, self.samples, None, False, ("x", "samples"), weights=self.weights)
        check_clouds(self.samples, x, None, False, ("samples", "x"))
        check_no_nan(x - x, "x")  # infinity becomes NaN too
        check_no_nan(self.samples - self.samples, "samples")
        w = _shares(self.samples, self.weights).detach().double()
        lead = torch.broadcast_shapes(x.shape[:-2], self.samples.shape[:-2], w.shape[:-1])
        # The median: a single distant sample would move the mean away from all others.
        ordered = self.samples.detach().double().sort(-2).values
        origin = ordered[..., ordered.shape[-2] // 2, None, :]
        a, b = x.double() - origin, self.samples.double() - origin
        a, b = (t.expand(*lead, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (a, b))
        w = w.expand(*lead, -1).reshape(-1, w.shape[-1])
        # Samples without weight take no part, wherever they are.
        kept = [(one, ys[own > 0], own[own > 0]) for one, ys, own in zip(a, b, w, strict=True)]
        for one, ys, _ in kept:
            if not bool((torch.cat([one, ys]).abs() < FARTHEST).all()):
                raise ValueError(
                    f"x or samples lie {FARTHEST:g} or more from the middle of the samples, so the cost |x - y|² "
                    "overflows; rescale them."
                )
        return lead, iter([(one, ys, own / own.sum()) for one, ys, own in kept])

    def _between(self, x: Tensor, w: Tensor) -> Between:
        return Between(x.new_full(x.shape[:1], 1 / len(x)), w, 2 * self.blur**2)

    def _within(self, x: Tensor, w: Tensor | None = None) -> Within:
        w = x.new_full(x.shape[:1], 1 / len(x)) if w is None else w
        return Within(w, w, 2 * self.blur**2)


def _shares(samples: Tensor, weights: Tensor | None) -> Tensor:
    """Weights that sum to 1, [..., M]. Raises: ValueError on a negative weight or NaN."""
    check_weights(weights)
    w = torch.ones_like(samples[..., 0])
    if weights is not None:  # their sum may overflow; shares depend on no factor
        w = weights / weights.detach().amax(-1, keepdim=True)
    return w / w.sum(-1, keepdim=True)


def _terms(F: Functional) -> list[tuple[float, Functional]]:
    return list(zip(F.weights, F.functionals, strict=True)) if isinstance(F, _Sum) else [(1.0, F)]
