r"""Which backend and which precision: measured limits, and the error that float32 would make."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.kernels import Kernel, Laplace, Matern, RationalQuadratic, Scaled
from wgflow.stretched import Stretched, unstretch
from wgflow.sums import sharding
from wgflow.sums.attention import gaussian_of
from wgflow.sums.checks import broadcast, check_clouds, readable

BACKENDS = ("auto", "dense", "streaming", "attention", "keops")
TOLERANCE = (
    2e-4  # error of an exponent that float32 may make: a fifth of the 1e-3 that no field exceeds
)
EXACT = 1e-10  # the same for float64 input, which has to stay exact
# Up to how many pairs the dense sums in float64 are the fastest: (largest dimension, pairs). Where both curves cross in
# one thread of an EPYC 7003 with torch 2.13, the milliseconds of dense | attention float32 with its error estimate:
# D = 2, 8: .56 | .58 at 65,536 pairs; D = 32: .91 | .65 at 32,761; D = 128: .99 | .67 at 9,216, .48 | .58 at 4,096.
DENSE_IS_FASTEST = ((16, 1 << 16), (64, 1 << 14), (math.inf, 1 << 12))
# Against streaming. Float32 (Laplace, D = 2), ms: .8 | .9 at 65,536 pairs, 1.8 | 1.8 at 131,044, 3.2 | 3.1 at 262,144.
# Float64 (energy field, D = 8), ns a pair at 2^17, 2^18, 2^19, 2^20, 2^22, each alone in a process: 22 | 25, 22 | 21,
# 29 | 16, 32 | 18, 48 | 21; in turns: 15 | 16, 14 | 16, 14 to 20 | 16, 30 | 16, 36 | 15; in turns with gradients:
# 72 | 70, 91 | 53, 90 | 61, 91 | 53, 153 | 49. What is lost is memory that the allocator gives back and asks for again
# at each call, page by page: told to keep it (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_), 15 | 15 at 2^22.
DENSE_BEFORE_STREAMING = 1 << 17
# No matrix of pairs beyond (32 MB) for second derivatives, or where values are not read.
DENSE_PAIRS = 1 << 22


@dataclass(frozen=True)
class Choice:
    """A backend, the dtype of its products and exponentials (masses and shifts are float64), and the reason."""

    backend: str
    dtype: torch.dtype
    automatic: bool
    error: (
        float | None
    )  # of an exponent, so about the relative one of the field; None: not estimated
    reason: str

    def __str__(self) -> str:
        error = (
            "exact to rounding" if self.error is None else f"relative error about {self.error:.0e}"
        )
        return f"{self.backend} in {str(self.dtype).removeprefix('torch.')}, {error}: {self.reason}"


def pairs(x: Tensor, y: Tensor) -> int:
    """How many (x, y) pairs a call sums over."""
    return math.prod(broadcast(x.shape[:-2], y.shape[:-2])) * x.shape[-2] * y.shape[-2]


def radius(points: Tensor, centre: Tensor) -> float:
    """The largest distance from a centre, the points taken in parts."""
    wide = torch.promote_types(
        points.dtype, torch.float32
    )  # the square of 256 is beyond half precision
    parts = [(p.to(wide) - centre).square().sum(-1).amax() for p in points.split(1 << 14, -2)]
    return math.sqrt(float(torch.stack(parts).amax()))


def expanded_error(
    x: Tensor, y: Tensor, h: float, log_weights: Tensor | None, dtype: torch.dtype
) -> float:
    """Error of a Gaussian exponent by the expanded square, eps ((|x - c| + |y - c|)²/2h² + spread of log w).

    c is the mean of y, the distances are the largest. The relative error of a field is smaller, since errors of
    different samples average out: at most a third of this in benchmarks/results/sums.md.
    """
    centre = y.mean(-2, keepdim=True)
    size = (radius(x, centre) + radius(y, centre)) ** 2 / (2 * h**2)
    if log_weights is not None:
        finite = log_weights[log_weights > -math.inf]
        size += float(finite.amax() - finite.amin())
    return torch.finfo(dtype).eps * size


def direct_error(x: Tensor, y: Tensor, kernel: Kernel, dtype: torch.dtype) -> float | None:
    """Error of an exponent by direct differences, for kernels whose logarithm grows slowly; None: not known."""
    eps = torch.finfo(dtype).eps
    match kernel:
        case Scaled(inner, _):
            return direct_error(x, y, inner, dtype)
        case Laplace(tau) | Matern(tau, _):
            centre = y.mean(-2, keepdim=True)
            return eps * (radius(x, centre) + radius(y, centre)) / tau
        case RationalQuadratic(scale, beta):
            # The exponent alone errs by 4 eps beta; the rest is the barycentre, rounded at the size of the cloud.
            centre = y.mean(-2, keepdim=True)
            return eps * (4 * beta + (radius(x, centre) + radius(y, centre)) / scale)
    return None


def products_are_exact() -> bool:
    """Whether float32 matrix products are made in float32: users may have allowed TF32 or bfloat16 for them."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through both of torch's interfaces
        return False


def choose(
    x: Tensor, y: Tensor, kernel: Kernel, log_weights: Tensor | None, backend: str
) -> Choice:
    """The backend and dtype of one call. Raises: ValueError on a backend that is unknown or cannot do it."""
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
            "no points, no blocks: the empty answer, with its graph",
        )
    if backend in ("dense", "streaming"):
        return Choice(backend, torch.float64, False, None, "asked for")
    if backend == "attention" and gaussian is None:
        raise ValueError(
            f'backend="attention" sums Gaussian kernels only, and this is {kernel!r}; '
            'pass backend="streaming" or "auto".'
        )
    automatic, n = backend == "auto", pairs(x, y)
    if automatic:
        most = DENSE_BEFORE_STREAMING
        if gaussian is not None:
            most = next(most for dim, most in DENSE_IS_FASTEST if x.shape[-1] <= dim)
        if n <= most:
            return Choice(
                "dense", torch.float64, True, None, f"{n} pairs; up to {most} it is the fastest"
            )
        if not readable(x, y, log_weights):
            plain = "dense" if n <= DENSE_PAIRS else "streaming"
            return Choice(plain, torch.float64, True, None, "the estimate of errors reads values")
        plain = "dense" if n <= DENSE_BEFORE_STREAMING else "streaming"
        backend = "streaming" if gaussian is None else "attention"
    else:
        plain = backend
    with torch.no_grad():
        error = _error(x, y, kernel, gaussian, log_weights, single)
    scale = 1.0 if single == torch.float64 else 2.0**-29  # of the errors of float64
    double = None if error is None else error * scale
    if error is None:
        why = f"{kernel!r} has no estimate of errors"
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
            f"backend={backend!r} errs by about {double:.0e} here, even in float64: the points lie too many bandwidths "
            'apart. Pass backend="auto" or "streaming", which take direct differences.',
            stacklevel=4,
        )
    return Choice(backend, torch.float64, automatic, double, why)


def _error(x, y, kernel, gaussian, log_weights, dtype) -> float | None:
    if gaussian is not None:
        return expanded_error(x, y, gaussian[0], log_weights, dtype)
    error = direct_error(x, y, kernel, dtype)
    if error is None or log_weights is None:
        return error
    # Blocks add log w as it is, so that its size is rounded, not only its spread.
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
    """What `kernel_average` would use for the same arguments and why: print it. Nothing is summed.

    Returns: a value with `backend`, `dtype`, `error` (relative, of a weight; None: exact to rounding) and `reason`.
    Raises: ValueError as `kernel_average`.
    """
    shards = sharding.behind(backend)
    check_clouds(x, y, log_weights, skip_self)
    if isinstance(kernel, Stretched):
        kernel, x, y, _ = unstretch(kernel, x, y)
        log_weights = None if log_weights is None else log_weights.double()
    choice = choose(x, y, kernel, log_weights, backend if shards is None else shards.backend)
    if shards is None:
        return choice
    reason = f"a ring of processes; this one's own shards by {choice.backend}: {choice.reason}"
    return replace(choice, backend="distributed", reason=reason)
