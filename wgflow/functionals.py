r"""Functionals of a cloud of particles: `value(x)`, and `velocity(x)` = -N ∇_i value, that of its W2 gradient flow.

Every one of them is a frozen value, and sums of them are sums of their velocities. x is [..., N, D]; a value is [...].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.divergences import Divergence
from wgflow.fields import blob_field, check_beta, energy_field, mean_kernel_gradient, mmd_field
from wgflow.kde import KDE
from wgflow.kernels import Kernel, as_kernels
from wgflow.sums import check_clouds, double_shift, refuse_nan

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


class Functional(Protocol):
    def value(self, x: Tensor) -> Tensor:
        """The functional at the empirical measure of x [..., N, D]: [...]."""
        ...

    def velocity(self, x: Tensor) -> Tensor:
        """-N times its gradient at each particle, [..., N, D]."""
        ...


@runtime_checkable
class Density(Protocol):
    """A target that knows itself: a `KDE`, a `toy.GaussianMixture`, or anything with these two methods."""

    def log_density(self, x: Tensor) -> Tensor: ...

    def score(self, x: Tensor) -> Tensor: ...


@checked
@dataclass(frozen=True, eq=False)
class Potential:
    """mean U(x_i): particles roll down U, alone. `energy`: [..., N, D] -> [..., N], differentiable."""

    energy: Callable[[Tensor], Tensor]

    def value(self, x: Tensor) -> Tensor:
        return self.energy(x).mean(-1)

    def velocity(self, x: Tensor) -> Tensor:
        return _descent(lambda at: self.energy(at).sum(), x)


@checked
@dataclass(frozen=True, eq=False)
class Interaction:
    """mean_ij k(x_i, x_j) / 2, self pairs included: particles leave crowded places. `kernel` needs no normalisation."""

    kernel: Kernel

    def value(self, x: Tensor) -> Tensor:
        log_mass, _ = double_shift(x, x, kernel=self.kernel)
        return (log_mass.exp().mean(-1) / (2 * x.shape[-2])).to(x.dtype)

    def velocity(self, x: Tensor) -> Tensor:
        return -mean_kernel_gradient(x, x, self.kernel.slope, None).to(x.dtype)


@checked
@dataclass(frozen=True, eq=False)
class MMD:
    """MMD²/2 to samples, U-statistic in x, less the constant of the samples: mean_{i≠j} k/2 - mean k(x_i, y_k).

    Any characteristic kernel, or several: then k is their sum. For the kernel -|x - y| see `EnergyDistance`.
    """

    samples: Tensor
    kernel: Kernel | Sequence[Kernel]
    weights: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        W = torch.ones_like(self.samples[..., 0]) if self.weights is None else self.weights
        log_w = (W / W.sum(-1, keepdim=True)).log()
        values = []
        for k in as_kernels(self.kernel):
            within, _ = double_shift(x, x, kernel=k, skip_self=True)
            across, _ = double_shift(x, self.samples, kernel=k, log_weights=log_w)
            values.append(within.exp().mean(-1) / (2 * (x.shape[-2] - 1)) - across.exp().mean(-1))
        return torch.stack(values).sum(0).to(x.dtype)

    def velocity(self, x: Tensor) -> Tensor:
        return mmd_field(x, self.samples, kernel=self.kernel, pos_weights=self.weights)


@checked
@dataclass(frozen=True, eq=False)
class EnergyDistance:
    """The energy score mean|x-y|^β - mean_{i≠j}|x_i-x_j|^β/2: half the energy distance, less the samples' constant.

    0 < beta < 2, 1 for the energy distance itself. Raises: ValueError on another beta.
    """

    samples: Tensor
    beta: float = 1.0

    def __post_init__(self):
        check_beta(self.beta)

    def value(self, x: Tensor) -> Tensor:
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        check_clouds(x, x, None, True, ("x", "x"))
        n = x.shape[-2]
        across, within = (
            self._powers(x, self.samples).mean((-2, -1)),
            self._powers(x, x).sum((-2, -1)),
        )
        return across - within / (2 * n * (n - 1))

    def velocity(self, x: Tensor) -> Tensor:
        return energy_field(x, self.samples, beta=self.beta)

    def _powers(self, x: Tensor, y: Tensor) -> Tensor:
        r = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        # Zeros are put in before the power, whose slope at 0 may be infinite.
        return torch.where(r == 0, 1.0, r).pow(self.beta) * (r != 0)


@checked
@dataclass(frozen=True, eq=False)
class BlobKL:
    """mean log q_h(x_i) - mean log p(x_i): reverse KL of the smoothed particles to a density that knows itself.

    `target`: a `KDE` of data, or a known density with `log_density` and `score` (up to a constant).
    """

    target: Density
    kernel: Kernel

    def value(self, x: Tensor) -> Tensor:
        return (KDE(x, self.kernel).log_density(x) - self.target.log_density(x)).mean(-1)

    def velocity(self, x: Tensor) -> Tensor:
        return blob_field(x, self.target.score, kernel=self.kernel)


@checked
@dataclass(frozen=True, eq=False)
class BlobDivergence:
    """mean f(r_i) / r_i, r = q_h / p: D_f(q || p) = ∫ q f(r)/r with q smoothed inside; reverse KL of it is `BlobKL`.

    `target` must know its *normalised* log density, unless the divergence is reverse KL. Velocity by autograd.
    """

    target: Density
    kernel: Kernel
    divergence: Divergence

    def value(self, x: Tensor) -> Tensor:
        log_r = KDE(x, self.kernel).log_density(x) - self.target.log_density(x)
        return (self.divergence.f(log_r) * (-log_r).exp()).mean(-1)

    def velocity(self, x: Tensor) -> Tensor:
        return x.shape[-2] * _descent(lambda at: self.value(at).sum(), x)


@checked
@dataclass(frozen=True, eq=False)
class Likelihood:
    """-mean log q_h(y_k), q_h the KDE of the particles: forward KL(p || q_h) less the entropy of the samples' law.

    Its velocity is N / (h² Σw) times `likelihood_field` for a Gaussian kernel, and a gradient for every other.
    """

    samples: Tensor
    kernel: Kernel
    weights: Tensor | None = None

    def value(self, x: Tensor) -> Tensor:
        return -(self._shares() * KDE(x, self.kernel).log_density(self.samples)).sum(-1)

    def velocity(self, x: Tensor) -> Tensor:
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        log_q, _ = double_shift(self.samples, x, kernel=self.kernel)
        log_w = self._shares().log() - log_q
        log_pull, shift = double_shift(x, self.samples, kernel=self.kernel.slope, log_weights=log_w)
        pull = (log_pull + math.log(x.shape[-2])).exp().unsqueeze(-1)
        return (pull * self.kernel.covector(shift)).to(x.dtype)

    def _shares(self) -> Tensor:
        W = torch.ones_like(self.samples[..., 0]) if self.weights is None else self.weights
        return W / W.sum(-1, keepdim=True)


@checked
@dataclass(frozen=True, eq=False)
class Sinkhorn:
    r"""Half the Sinkhorn divergence with cost |x - y|², regularisation 2 blur²: geomloss computes it (`pip install
    geomloss`).

    `scaling` is geomloss' annealing: .9 is right to about 1e-4, its own default .5 errs by some 6e-3.
    """

    samples: Tensor
    blur: float
    scaling: float = 0.9

    def _loss(self) -> Any:
        try:
            from geomloss import SamplesLoss
        except ImportError as missing:
            raise ImportError(
                "Sinkhorn needs geomloss, which is not installed: pip install geomloss."
            ) from missing
        return SamplesLoss(
            "sinkhorn", p=2, blur=self.blur, scaling=self.scaling, backend="tensorized"
        )

    def value(self, x: Tensor) -> Tensor:
        check_clouds(x, self.samples, None, False, ("x", "samples"))
        check_clouds(x, x, None, False, ("x", "x"))
        refuse_nan(
            x - x, "x"
        )  # infinity becomes NaN too; geomloss would fail on either, far from the cause
        refuse_nan(self.samples - self.samples, "samples")
        return self._loss()(x.contiguous(), self.samples.contiguous())

    def velocity(self, x: Tensor) -> Tensor:
        return x.shape[-2] * _descent(lambda at: self.value(at).sum(), x)


def _descent(total: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """-∇ total(x), without a graph."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(total(at), at)
    return -grad
