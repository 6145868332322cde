r"""Select backend and precision: measured limits, and an estimate of the error of float32."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wgflow.arguments import checked, values_available
from wgflow.kernels import Kernel, Laplace, Matern, RationalQuadratic, Scaled, rescale
from wgflow.reductions import sharding
from wgflow.reductions.gemm import gaussian_of
from wgflow.reductions.validation import broadcast, check_clouds

BACKENDS = ("auto", "dense", "blocked", "gemm", "keops")
# Largest error of an exponent in float32: a fifth of the 1e-3 that no field exceeds.
TOLERANCE = 2e-4
EXACT = 1e-10  # the same for float64 input
# Numbers of pairs up to which dense sums in float64 are the fastest: (largest dimension, pairs). Milliseconds of
# dense | gemm in float32 with its error estimate, where both curves cross, one thread of an EPYC 7003 with torch 2.13:
# D = 2, 8: .56 | .58 at 65,536 pairs; D = 32: .91 | .65 at 32,761; D = 128: .99 | .67 at 9,216, .48 | .58 at 4,096.
DENSE_IS_FASTEST = ((16, 1 << 16), (64, 1 << 14), (math.inf, 1 << 12))
# The same against blocks. Float32 (Laplace, D = 2), ms: .8 | .9 at 65,536 pairs, 1.8 | 1.8 at 131,044, 3.2 | 3.1 at
# 262,144. Float64 (energy field, D = 8), ns per pair at 2^17, 2^18, 2^19, 2^20, 2^22, each alone in a process: 22 | 25,
# 22 | 21, 29 | 16, 32 | 18, 48 | 21; in turns: 15 | 16, 14 | 16, 14 to 20 | 16, 30 | 16, 36 | 15; in turns with
# gradients: 72 | 70, 91 | 53, 90 | 61, 91 | 53, 153 | 49. The allocator returns large matrices and requests them
# again at each call; told to keep them (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_): 15 | 15 at 2^22.
DENSE_BEFORE_BLOCKS = 1 << 17
# The largest matrix of pairs (32 MB) for second derivatives, or where values cannot be read.
DENSE_PAIRS = 1 << 22


@dataclass(frozen=True)
class Choice:
    """A backend, the dtype of its products and exponentials (masses and shifts are float64), and the reason."""

    backend: str
    dtype: torch.dtype
    automatic: bool
    # Estimated error of an exponent, about the relative error of the field; None: exact to rounding.
    error: float | None
    reason: str

    def __str__(self) -> str:
        error = (
            "exact to rounding" if self.error is None else f"relative error about {self.error:.0e}"
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


def expanded_error(
    x: Tensor, y: Tensor, h: float, log_weights: Tensor | None, dtype: torch.dtype
) -> float:
    """Error of a Gaussian exponent by the expanded square: eps ((|x - c| + |y - c|)²/2h² + spread of log w).

    c is the mean of y, and the distances are the largest. The relative error of a field is smaller, since errors of
    different samples average out: at most a third of this in benchmarks/results/sums.md.
    """
    centre = y.mean(-2, keepdim=True)
    size = (radius(x, centre) + radius(y, centre)) ** 2 / (2 * h**2)
    if log_weights is not None:
        finite = log_weights[log_weights > -math.inf]
        size += float(finite.amax() - finite.amin())
    return torch.finfo(dtype).eps * size


def direct_error(x: Tensor, y: Tensor, kernel: Kernel, dtype: torch.dtype) -> float | None:
    """Error of an exponent by direct differences, for kernels whose logarithm grows slowly; None if unknown."""
    eps = torch.finfo(dtype).eps
    match kernel:
        case Scaled(inner, _):
            return direct_error(x, y, inner, dtype)
        case Laplace():
            constant, length = 0.0, kernel.h
        case Matern():
            constant, length = 0.0, kernel.decay_length
        case RationalQuadratic():
            # The exponent alone errs by 4 eps alpha; the rest is the barycentre, rounded at the size of the cloud.
            constant, length = 4 * kernel.alpha, math.sqrt(kernel.sq_scale)
        case _:
            return None
    centre = y.mean(-2, keepdim=True)
    return eps * (constant + (radius(x, centre) + radius(y, centre)) / length)


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
        error = _error(x, y, kernel, gaussian, log_weights, single)
    scale = 1.0 if single == torch.float64 else 2.0**-29  # error of float64 / error of float32
    double = None if error is None else error * scale
    if error is None:
        why = f"{kernel!r} has no error estimate"
    elif single == torch.float32 and not products_are_exact():
        why = "torch is set to round the factors of float32 products"
    elif error <= (EXACT if single == torch.float64 else TOLERANCE):
        return Choice(
            backend, single, automatic, error, f"{n} pairs, the fastest that is accurate enough"
        )
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
    return Choice(backend, torch.float64, automatic, double, why)


def _error(x, y, kernel, gaussian, log_weights, dtype) -> float | None:
    if gaussian is not None:
        return expanded_error(x, y, gaussian[0], log_weights, dtype)
    error = direct_error(x, y, kernel, dtype)
    if error is None or log_weights is None:
        return error
    # Blocks add log w itself, so that its size is rounded, not only its spread.
    return error + torch.finfo(dtype).eps * float(log_weights[log_weights > -math.inf].abs().amax())


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
        A value with `backend`, `dtype`, `error` (relative, of a weight; None is exact to rounding)
        and `reason`.

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
