r"""Kernel averages over a large fixed cloud through landmarks, with a bound on their error, and the drift they give."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wgflow.arguments import checkable, checked, checked_constructor
from wgflow.density import KDE
from wgflow.fields.base import Field, refuse_lone_weights
from wgflow.kernels import Compact, Kernel, LengthScaleKernel, positive, unscaled
from wgflow.reductions import check_clouds, check_no_nan, kernel_shift_f64, require_unsharded

__all__ = ["NystromAverage", "NystromField"]

RIDGE = 1e-8  # of k(0): keeps the residual kernel above the rounding of its Cholesky factor
ROUNDING = 1e-9  # relative error that float64 sums over all pairs may have, see docs/backends.md
BLOCK = 2**22  # pairs held at a time


@checked
class NystromAverage(nn.Module):
    r"""Kernel averages over a fixed cloud y, each sum over its P samples replaced by one over L landmarks u.

    k(x, y) becomes k(x, u) G k(u, y), G = (k(u, u) + λ)⁻¹: the Nyström method, as for the attraction of DriftXpress
    (Falahati et al. 2026). The sum over y is taken beforehand, so that an average costs N L D multiplications instead
    of N P D.

    The residual kernel r = k - k(x, u) G k(u, y) is positive semi-definite, so that for any vectors v_j
    |Σ_j v_j r(x, y_j)|² <= r(x, x) Σ_ij v_i·v_j r(y_i, y_j). For v_j = w_j this bounds the error of the mass, for
    v_j = w_j (y_j - b̃) that of the mean b̃, see `error_bound`. The double sums are taken once, here: P² pairs.

    Samples, weights and kernel are constants, without gradients; sums through landmarks are in float64. λ = 1e-8 k(0).

    Args:
        samples: y, [P, D].
        landmarks: u, [L, D], for example some of the samples: `y[torch.randperm(len(y))[:L]]`.
        kernel: positive definite, with one length scale for the whole cloud.
        weights: w, [P], not negative, or None for equal ones. Only their ratios matter.

    Raises:
        ValueError: on bad clouds or weights, on batches of clouds, on kernels that are not positive definite or are
            infinite at 0; inside `wgflow.distributed.sharded`.
    """

    landmarks: Tensor
    factor: Tensor  # inverse Cholesky factor of K + λ, [L, L]
    folded: Tensor  # (K + λ)⁻¹ k(u, y) w [1, y - centre], [L, 1 + D]
    centre: Tensor  # Σ w y / Σ w, [D]
    residual: Tensor  # Σ_ij w_i w_j r(y_i, y_j) [1, z_j, z_i·z_j] with z = y - centre, [2 + D]
    top: Tensor  # k(0)
    reach: Tensor  # the largest |y - centre|

    def __init__(
        self,
        samples: Tensor,
        landmarks: Tensor,
        kernel: Kernel,
        weights: Tensor | None = None,
    ):
        super().__init__()
        require_unsharded("a Nyström average")
        check_clouds(landmarks, samples, None, False, ("landmarks", "samples"), weights=weights)
        if samples.dim() > 2 or landmarks.dim() > 2:
            raise ValueError(
                f"samples are {list(samples.shape)} and landmarks {list(landmarks.shape)}; wanted one cloud [P, D] and "
                "[L, D]. For batches, one NystromAverage per cloud."
            )
        if not len(landmarks):
            raise ValueError(
                f"landmarks are empty ({list(landmarks.shape)}); wanted some points, such as samples[:100]."
            )
        scale = kernel.length_scale if isinstance(kernel, LengthScaleKernel) else None
        if isinstance(scale, Tensor):
            if scale.dim() > 2:
                raise ValueError(
                    f"the length scale of the kernel is {list(scale.shape)}; wanted one for the whole cloud: a number, "
                    "[], [D] or a Cholesky factor [D, D]."
                )
            kernel = dataclasses.replace(kernel, length_scale=scale.detach())  # type: ignore[type-var]
        weights = None if weights is None else weights.detach()
        self.cloud = KDE(samples.detach(), kernel, weights)  # holds them as buffers
        self.register_buffer("landmarks", landmarks.detach())
        with torch.no_grad():
            self._fold()

    @property
    def kernel(self) -> Kernel:
        """The kernel, with its length scale on the device of the module."""
        return self.cloud.kernel

    def extra_repr(self) -> str:
        return f"landmarks={list(self.landmarks.shape)}"

    def mean_shift(self, x: Tensor, *, tolerance: float | None = None) -> Tensor:
        r"""Step from x to the kernel-weighted mean of the samples, as `wgflow.mean_shift`: [..., N, D] -> [..., N, D].

        Rows whose mass is not positive, or whose mean is farther from the centre than every sample, cannot be right:
        they are summed over all samples, as by `wgflow.mean_shift`. Finding them synchronises a GPU. Differentiable
        in x.

        Args:
            x: [..., N, D].
            tolerance: a length; rows whose `error_bound` exceeds it are summed over all samples too, so that all errors
                are below it, or within the accuracy of `kernel_average`. It costs N L² multiplications. None: no bound
                is evaluated.

        Raises:
            ValueError: as `kernel_average`; on a tolerance that is not positive.
        """
        self._check(x)
        if tolerance is not None:
            tolerance = positive("tolerance", tolerance)
        points = x.reshape(-1, x.shape[-1])
        means, certain = [], []
        for part in points.split(self._rows()):
            pairs = self._pairs(part)
            mass, mean = self._sums(pairs)
            good = (mass > 0) & (mean.detach().norm(dim=-1) <= self.reach)
            if tolerance is not None:
                good &= self._bound(pairs, mass, mean) <= tolerance
            means.append(mean)
            certain.append(good)
        shift = torch.cat(means) + (self.centre - points.double())
        rows = (~torch.cat(certain)).nonzero().squeeze(-1)
        if len(rows):
            settings = {"kernel": self.kernel, "weights": self.cloud.weights}
            exact = kernel_shift_f64(points[rows], self.cloud.samples, **settings)[1]
            shift = shift.index_put((rows,), exact)
        return shift.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def error_bound(self, x: Tensor) -> Tensor:
        r"""A bound on |mean shift found - exact mean shift| at each point, a length: [..., N, D] -> [..., N].

        ρ B / (m̃ - ρ √γ): m̃ and b̃ the mass and mean found, ρ² = r(x, x), γ = Σ_ij w_i w_j r(y_i, y_j), and B² the
        same sum with factors (y_i - b̃)·(y_j - b̃). Infinite where the mass is not certain to be positive. No gradient;
        N L² multiplications. Typically 20 to 100 times the error.

        Raises:
            ValueError: as `kernel_average`.
        """
        self._check(x)
        bounds = []
        for part in x.reshape(-1, x.shape[-1]).split(self._rows()):
            pairs = self._pairs(part)
            bounds.append(self._bound(pairs, *self._sums(pairs)))
        return torch.cat(bounds).reshape(x.shape[:-1]).to(x.dtype)

    def _check(self, x: Tensor) -> None:
        require_unsharded("a Nyström average")
        check_clouds(x, self.cloud.samples, None, False, ("x", "samples"))
        if self.folded.dtype != torch.float64:
            raise ValueError(
                f"the sums of this average were cast to {self.folded.dtype} and have lost their digits; make it anew "
                "from samples of that dtype."
            )
        check_no_nan(x.detach() - x.detach(), "x")

    def _rows(self) -> int:
        return max(1, BLOCK // len(self.landmarks))

    def _pairs(self, x: Tensor) -> Tensor:
        """k(x, u), [N, L] in float64."""
        return self.kernel.log_pairs(x.double(), self.landmarks.double()).exp()

    def _sums(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(mass, mean - centre), [N] and [N, D]; the mean is 0 where the mass is not positive."""
        mass, moment = (pairs @ self.folded).split([1, self.centre.shape[-1]], -1)
        some = mass > 0
        return mass.squeeze(-1), (moment / mass.where(some, 1.0)).where(some, 0.0)

    @torch.no_grad()
    def _bound(self, pairs: Tensor, mass: Tensor, b: Tensor) -> Tensor:
        gamma, beta, alpha = self.residual[0], self.residual[1:-1], self.residual[-1]
        square, size = alpha - 2 * (b @ beta) + gamma * b.square().sum(-1), b.norm(dim=-1)
        # Sums over landmarks are rounded, relative to their absolute terms; double sums hold errors of either kind.
        eps = torch.finfo(torch.float64).eps * self.top
        mass_eps, *moment_eps = eps * self.folded.abs().sum(0)
        mean_eps = torch.stack(moment_eps).norm() + mass_eps * size
        rho = (self.top - (pairs @ self.factor.mT).square().sum(-1)).clamp_min(eps).sqrt()
        double_eps, extent = ROUNDING * self.top + mass_eps, self.reach + size
        mass_error = rho * (gamma.clamp_min(0) + double_eps).sqrt() + mass_eps
        square = square.clamp_min(0) + double_eps * extent.square() + mean_eps * extent
        moment_error = rho * square.sqrt() + mean_eps
        lowest = mass - mass_error
        return torch.where(lowest > 0, moment_error / lowest.abs(), math.inf)

    def _fold(self) -> None:
        """Sum over the samples, once."""
        u, y, w = self.landmarks.double(), self.cloud.samples.double(), self.cloud.weights
        w = y.new_full((len(y),), 1 / len(y)) if w is None else w.double() / w.double().sum()
        check_no_nan(u - u, "landmarks")
        K = self.kernel.log_pairs(u, u).exp()
        top = K[0, 0]
        if isinstance(unscaled(self.kernel.standardize()[0])[0], Compact) or (
            checkable(top) and not 0 < float(top) < math.inf
        ):
            raise ValueError(
                f"the kernel is {self.kernel!r}, which is not positive definite or not finite at 0, so that landmarks "
                "have no error bound; use Gaussian, Laplace, Matern or RationalQuadratic."
            )
        identity = torch.eye(len(u), dtype=K.dtype, device=K.device)
        L = torch.linalg.cholesky(K + RIDGE * top * identity)
        centre = w @ y
        z = torch.cat([torch.ones_like(y[:, :1]), y - centre], -1)
        parts = zip((w[:, None] * z).split(self._rows()), y.split(self._rows()), strict=True)
        seen = sum(self._pairs(part).mT @ charge for charge, part in parts)
        folded = torch.cholesky_solve(seen, L)  # type: ignore[arg-type]
        self.register_buffer("factor", torch.linalg.solve_triangular(L, identity, upper=False))
        self.register_buffer("folded", folded)
        self.register_buffer("centre", centre)
        self.register_buffer("top", top)
        # Samples of weight 0 do not count.
        present = (y - centre).norm(dim=-1).masked_fill(w == 0, 0.0)
        self.register_buffer("reach", present.amax())
        self.register_buffer("residual", self._residual_sums(y, z, w))

    def _residual_sums(self, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Σ_i w_i [e_i, z_i e_i, z_i · f_i], with e and f the errors of mass and moment at the samples: [2 + D]."""
        log_mass, shift = kernel_shift_f64(y, y, kernel=self.kernel, weights=w)
        exact = torch.cat([torch.ones_like(shift[:, :1]), shift + z[:, 1:]], -1)
        exact *= log_mass.exp().unsqueeze(-1)
        found = [self._pairs(part) @ self.folded for part in y.split(self._rows())]
        error = exact - torch.cat(found)
        return torch.cat([w @ error, (w @ (z[:, 1:] * error[:, 1:]).sum(-1))[None]])


@checked_constructor
@dataclass(frozen=True, repr=False)
class NystromField(Field):
    r"""V = V⁺ - V⁻ of `DriftingField` (DFP Eq. 3), with the attraction V⁺ of a fixed cloud through landmarks.

    The repulsion is summed exactly, under the kernel of the average. `pos` is not used, and its weights are refused.
    Without `neg`, the negatives are the points, own point included.

    Args:
        attraction: the average of the positives.
        tolerance: of the error of V⁺, a length, see `NystromAverage.mean_shift`.
        skip_self: leave each point out of its own negatives when the negatives are the points.
    """

    attraction: NystromAverage
    tolerance: float | None = None
    skip_self: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.attraction, NystromAverage):
            raise ValueError(
                f"attraction is {type(self.attraction).__name__}; wanted NystromAverage(data, landmarks, kernel)."
            )
        if self.tolerance is not None:
            positive("tolerance", self.tolerance)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        refuse_lone_weights(neg, neg_weights)
        if pos_weights is not None:
            raise ValueError(
                "pos_weights was passed to a NystromField, whose positives are fixed; weigh them in its "
                "NystromAverage(samples, landmarks, kernel, weights)."
            )
        towards = self.attraction.mean_shift(x, tolerance=self.tolerance)
        _, away = kernel_shift_f64(
            x,
            x if neg is None else neg,
            kernel=self.attraction.kernel,
            weights=neg_weights,
            skip_self=self.skip_self and neg is None,
        )
        return (towards.double() - away).to(x.dtype)

    def check_scalable(self) -> None:
        raise ValueError(
            "a NystromField has a fixed cloud, whose lengths are those of x; scale the data and the points before it, "
            "or use normalized()."
        )
