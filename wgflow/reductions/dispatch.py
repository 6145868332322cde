r"""Select backend and precision: measured limits, and an estimate of the error of float32."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wgflow.arguments import checked, values_available
from wgflow.kernels import (
    Kernel,
    Laplace,
    Matern,
    RationalQuadratic,
    Riesz,
    Yukawa,
    rescale,
    unscaled,
)
from wgflow.reductions import sharding
from wgflow.reductions.gemm import gaussian_of
from wgflow.reductions.validation import broadcast, check_clouds

BACKENDS = ("auto", "dense", "blocked", "gemm", "keops")
# Largest error of an exponent, so of a weight, in float32: twice this and SHORTEST add up to less than 1e-3.
TOLERANCE = 2e-4
EXACT = 1e-10  # the same for float64
# Bound of the rounding errors of a shift, in eps times the reach of the clouds. Sums of hundreds of products err as a
# random walk, by a few eps; benchmarks/results/accuracy.md compares the promise that follows with 80-bit sums.
ROUNDING = 4.0
# Largest rounding error as a fraction of the distances averaged, by the dtype of the input; shorter rows are refined.
SHORTEST = {torch.float32: 5e-4, torch.float64: 1e-9}
# Range of clouds whose squared distances are floats, and the size of the logarithm of such a distance.
SHORT, LONG, LOGARITHM = 1e-15, 1e18, 45.0
EPS64 = torch.finfo(torch.float64).eps
# Numbers of pairs up to which dense sums in float64 are the fastest: (largest dimension, pairs). Milliseconds of
# dense | gemm in float32 with its error estimate, where both curves cross, one thread of an EPYC 7003 with torch 2.13:
# D = 2, 8: .56 | .58 at 65,536 pairs; D = 32: .91 | .65 at 32,761; D = 128: .99 | .67 at 9,216, .48 | .58 at 4,096.
DENSE_IS_FASTEST = ((16, 1 << 16), (64, 1 << 14), (math.inf, 1 << 12))
# The same against blocks. Milliseconds of dense | blocks in float32, Laplace and energy field, at 2^16 and 2^17 pairs:
# D = 2: .7 | 1.1, .7 | 1.3, 1.5 | 1.6, 1.4 | 2.0; D = 25: 1.4 | 1.3, 1.4 | 1.4, 2.7 | 2.1, 2.9 | 2.0. Blocks in float64
# with gradients, ns per pair at 2^17, 2^18, 2^20: 72 | 70, 91 | 53, 91 | 53. Larger matrices are returned to the system
# and requested again at each call.
DENSE_BEFORE_BLOCKS = 1 << 17
# The largest matrix of pairs (32 MB) for second derivatives, or where values cannot be read.
DENSE_PAIRS = 1 << 22


@dataclass(frozen=True)
class Choice:
    """A backend, the dtype of its products and exponentials (masses and shifts are float64), its error and the reason.

    `error` bounds the error of a shift Σ_j W_ij (y_j - x_i), as a fraction of the root mean square of the distances
    |y_j - x_i| that it averages with weights W_ij. None: exact to rounding, see docs/backends.md.
    """

    backend: str
    dtype: torch.dtype
    automatic: bool
    error: float | None
    reason: str
    # Bound of the rounding errors of a shift, a length; rows that average shorter distances than it allows for are
    # refined. None: none are.
    rounding: float | None = None
    instead: Choice | None = None  # where most rows need refinement

    def __str__(self) -> str:
        error = (
            "exact to rounding" if self.error is None else f"relative error below {self.error:.0e}"
        )
        return f"{self.backend} in {str(self.dtype).removeprefix('torch.')}, {error}: {self.reason}"


def pairs(x: Tensor, y: Tensor) -> int:
    """Number of (x, y) pairs in a sum."""
    return math.prod(broadcast(x.shape[:-2], y.shape[:-2])) * x.shape[-2] * y.shape[-2]


def radius(points: Tensor, centre: Tensor) -> float:
    """The largest distance of the points from a centre."""
    # The square of 256 is beyond half precision; a float32 copy of part of the points at a time.
    wide = torch.promote_types(points.dtype, torch.float32)
    parts = [(p.to(wide) - centre).square().sum(-1).amax() for p in points.split(1 << 14, -2)]
    return math.sqrt(float(torch.stack(parts).amax()))


def reach(x: Tensor, y: Tensor) -> float:
    """|x - c| + |y - c| at its largest, c the mean of y: no distance is longer."""
    centre = y.mean(-2, keepdim=True)
    return radius(x, centre) + radius(y, centre)


def long_sum(dim: int) -> float:
    """Growth of the rounding error of a scalar product with its length: a random walk (Higham and Mary 2019).

    An eighth of the square root, since products accumulate in several registers and blocks.
    """
    return 1 + math.sqrt(dim) / 8


def exponent_error(
    length: float, dim: int, kernel: Kernel, log_weights: Tensor | None, dtype: torch.dtype
) -> float | None:
    """Bound of the error of log w k for pairs up to `length` apart; None if the kernel has no estimate.

    Gaussians by the expanded square: eps (length²/2h² + spread of log w). Other kernels from distances with a relative
    error of eps, if their logarithm grows slowly. Errors of different samples average out, so that of a field is far
    smaller in most cases.
    """
    eps, size = torch.finfo(dtype).eps, 0.0
    gaussian = gaussian_of(kernel)
    if log_weights is not None:
        finite = log_weights[log_weights > -math.inf]
        # Blocks add log w itself, so that its size is rounded, not only its spread.
        size = float(finite.amax() - finite.amin() if gaussian else finite.abs().amax())
    if gaussian is not None:
        return eps * (long_sum(dim) * length**2 / (2 * gaussian[0] ** 2) + size)
    if not SHORT < length < LONG:
        return None
    kernel, _ = unscaled(kernel)
    match kernel:
        case Riesz():
            constant, unit = LOGARITHM * kernel.s, math.inf
        case Yukawa():
            constant, unit = 2 * LOGARITHM, kernel.length_scale
        case Laplace():
            constant, unit = 0.0, kernel.h
        case Matern():
            constant, unit = 0.0, kernel.decay_length
        case RationalQuadratic():
            constant, unit = 4 * kernel.alpha, math.sqrt(kernel.sq_scale)
        case _:
            return None
    return eps * (constant + long_sum(dim) * length / unit + size)


def products_are_exact() -> bool:
    """Return True if float32 matrix products are made in float32, and not in TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through both interfaces of torch
        return False


def choose(
    x: Tensor, y: Tensor, kernel: Kernel, log_weights: Tensor | None, backend: str
) -> Choice:
    """Select backend and dtype of a call. Raises: ValueError if `backend` is unknown or lacks the kernel."""
    single = torch.float64 if x.dtype == torch.float64 else torch.float32
    gaussian = gaussian_of(kernel)
    if backend not in BACKENDS:
        raise ValueError(
            f"backend = {backend!r} is unknown; wanted one of {', '.join(map(repr, BACKENDS))}."
        )
    if x.numel() == 0 or y.numel() == 0:
        return Choice(
            "dense",
            torch.float64,
            False,
            None,
            "no points",
        )
    if backend in ("dense", "blocked"):
        return Choice(backend, torch.float64, False, None, "requested")
    if backend == "gemm" and gaussian is None:
        raise ValueError(
            f'backend="gemm" sums Gaussian kernels only, and this is {kernel!r}; '
            'pass backend="blocked" or "auto".'
        )
    automatic, n = backend == "auto", pairs(x, y)
    if automatic:
        most = DENSE_BEFORE_BLOCKS
        if gaussian is not None:
            most = next(most for dim, most in DENSE_IS_FASTEST if x.shape[-1] <= dim)
        if n <= most:
            return Choice(
                "dense", torch.float64, True, None, f"{n} pairs, the fastest up to {most}"
            )
        if not values_available(x, y, log_weights):
            plain = "dense" if n <= DENSE_PAIRS else "blocked"
            return Choice(
                plain,
                torch.float64,
                True,
                None,
                "values cannot be read, so errors not be estimated",
            )
        plain = "dense" if n <= DENSE_BEFORE_BLOCKS else "blocked"
        backend = "blocked" if gaussian is None else "gemm"
    else:
        plain = backend
    with torch.no_grad():
        length = reach(x, y)
        error = exponent_error(length, x.shape[-1], kernel, log_weights, single)
    limit = SHORTEST[single]

    def estimated(dtype: torch.dtype, reason: str, instead: Choice | None = None) -> Choice:
        scale = torch.finfo(dtype).eps / torch.finfo(single).eps
        rounding = None if backend == "keops" else ROUNDING * torch.finfo(dtype).eps * length
        # Two weights with opposite errors move a shift by their sum.
        bound = None if error is None else 2 * error * scale + limit
        return Choice(backend, dtype, automatic, bound, reason, rounding, instead)

    exact = Choice("blocked", torch.float64, automatic, None, "direct differences")
    double = None if error is None else error * EPS64 / torch.finfo(single).eps
    within = error is not None and error <= (EXACT if single == torch.float64 else TOLERANCE)
    if error is None:
        why = f"{kernel!r} has no error estimate"
    elif single == torch.float32 and not products_are_exact():
        why = "torch is set to round the factors of float32 products"
    elif within:
        instead = exact
        if single == torch.float32 and backend == "gemm" and double is not None and double <= EXACT:
            instead = estimated(
                torch.float64, "float32 would lose the digits of short distances", exact
            )
        return estimated(single, f"{n} pairs, the fastest that is accurate enough", instead)
    else:
        why = f"{str(single)[6:]} would err by {error:.0e}"
    if automatic and (double is None or double > EXACT):
        return Choice(plain, torch.float64, True, None, f"direct differences: {why}")
    if double is not None and double > 1e-3:
        warnings.warn(
            f"backend={backend!r} errs by about {double:.0e} here, even in float64: the points lie too many length "
            'scales apart. Pass backend="auto" or "blocked", which take direct differences.',
            stacklevel=4,
        )
    return estimated(torch.float64, why, exact)


@checked
def explain_backend(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    log_weights: Tensor | None = None,
    skip_self: bool = False,
    backend: str = "auto",
) -> Choice:
    """Explain which backend `kernel_average` would select for the same arguments, without summing. Print the result.

    Returns:
        A value with `backend`, `dtype`, `error` and `reason`. A mean shift errs by less than `error` times the root
        mean square of the distances it averages; None is exact to rounding. Rows that average distances too short for
        the digits of `dtype` are summed again in float64.

    Raises:
        ValueError: See `kernel_average`.
    """
    shards = sharding.shards_of(backend)
    check_clouds(x, y, log_weights, skip_self)
    kernel, scale = kernel.standardize()
    if scale is not None:
        _, x, y = rescale(scale, x, y)
        log_weights = None if log_weights is None else log_weights.double()
    choice = choose(x, y, kernel, log_weights, backend if shards is None else shards.backend)
    if shards is None:
        return choice
    reason = f"a ring of processes; local sums by {choice.backend}: {choice.reason}"
    return replace(choice, backend="distributed", reason=reason)
