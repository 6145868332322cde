r"""The KeOps backend: one fused reduction without any matrix of pairs, where pykeops and a compiler are at hand.

KeOps (Charlier et al. 2021, JMLR 22) compiles each formula, dimension and dtype once, 8 to 12 seconds, into its cache.
Its traps are closed here: one dtype for all arguments (mixed ones give wrong numbers in silence), finite weights (-inf
is NaN), no half precision, contiguous arguments, build messages off, the bandwidth a parameter.
"""

from __future__ import annotations

import functools
import importlib
import math
import os

import torch
from torch import Tensor

from wgflow.kernels import Gaussian, Kernel, Laplace, Matern, RationalQuadratic, Scaled
from wgflow.sums.flat import flatten

__all__ = ["keops_warmup"]

ABSENT = -1e30  # the log weight of nothing: finite, since -inf in the first place is NaN there
HINT = 'Install it with pip install "wgflow[keops]" and g++ with the Python headers, or use backend="auto".'


def formula_of(kernel: Kernel) -> tuple[str, list[float], float]:
    """(log k in KeOps's words with parameters G, the parameters, log scale). Raises: ValueError if there is none."""
    match kernel:
        case Scaled(inner, log_scale):
            formula, parameters, more = formula_of(inner)
            return formula, parameters, log_scale + more
        case Gaussian(h):
            return "-(G * SqDist(X, Y))", [0.5 / h**2], 0.0
        case Laplace(tau):
            return "-(G * Sqrt(SqDist(X, Y)))", [1 / tau], 0.0
        case Matern(tau, _):
            # Horner's scheme of the polynomial: Elem(G, i) are its coefficients.
            u = "(Elem(G, 0) * Sqrt(SqDist(X, Y)))"
            poly = f"Elem(G, {kernel.order + 1})"
            for i in range(kernel.order, 0, -1):
                poly = f"({poly} * {u} + Elem(G, {i}))"
            return f"Log({poly}) - {u}", [1 / tau, *kernel._coefficients], 0.0
        case RationalQuadratic(scale, beta):
            return (
                "-(Elem(G, 1) * Log(IntCst(1) + Elem(G, 0) * SqDist(X, Y)))",
                [1 / scale**2, beta],
                0.0,
            )
    raise ValueError(
        f"{kernel!r} has no KeOps formula here (compact and singular kernels need -inf, which KeOps turns into NaN); "
        'use backend="streaming" or "auto".'
    )


@functools.cache
def genred():
    """`pykeops.torch.Genred`, imported at first use and silently. Raises: RuntimeError without pykeops."""
    # Only what the user has not set: both are read at import, and one alone leaves half of the messages on. Another
    # package may have imported it before, talking.
    names = ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE")
    asked = any(name in os.environ for name in names)
    for name in names:
        os.environ.setdefault(name, "0")
    try:
        found = importlib.import_module("pykeops.torch").Genred
        if not asked:
            importlib.import_module("pykeops").set_verbose(False)
    except Exception as error:  # pykeops builds at import, so that anything can go wrong here
        raise RuntimeError(
            f'backend="keops" cannot be used: pykeops does not import ({error}). {HINT}'
        ) from error
    return found


@functools.cache
def reduction(formula: str, parameters: int, dim: int, skip_self: bool):
    """The compiled sums [maximum, Σ e, Σ e (y - x)] of one formula and dimension: one pass, the step's digits kept."""
    variables = [f"X = Vi({dim})", f"Y = Vj({dim})", "W = Vj(1)", f"G = Pm({parameters})"]
    formula = f"W + {formula}"
    if skip_self:  # its own sample, known by its number
        variables += ["I = Vi(1)", "J = Vj(1)", "A = Pm(1)"]
        formula += " + A * (IntCst(1) - Sign(Square(I - J)))"
    step = "Concat(IntCst(1), Y - X)"
    return genred()(formula, variables, reduction_op="Max_SumShiftExpWeight", axis=1, formula2=step)


def forward(x, y, log_weights, kernel, skip_self, dtype) -> tuple[Tensor, Tensor]:
    """(log_mass, shift) in float64, summed by KeOps in `dtype`; one call for each batch element.

    Raises: RuntimeError without pykeops or a compiler; ValueError for kernels without a formula.
    """
    formula, parameters, log_scale = formula_of(kernel)
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    B, N, D = x.shape
    run = reduction(formula, len(parameters), D, skip_self)
    like = {"dtype": dtype, "device": x.device}
    G, absent = torch.tensor(parameters, **like), torch.tensor([ABSENT], **like)
    origin = y.mean(-2, keepdim=True).double()
    x, y = ((t.double() - origin).to(dtype).contiguous() for t in (x, y))
    w = (
        torch.zeros(B, y.shape[1], **like)
        if log_weights is None
        else log_weights.to(dtype).clamp_min(ABSENT)
    )
    numbers = torch.arange(N, **like).unsqueeze(-1)
    extra = (numbers, numbers, absent) if skip_self else ()
    device = "CPU" if x.device.type == "cpu" else "GPU"
    done = []
    for b in range(B):
        try:
            out = run(x[b], y[b], w[b].unsqueeze(-1).contiguous(), G, *extra, backend=device)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as error:  # an import error is how a missing compiler shows
            raise RuntimeError(
                f'backend="keops" cannot compile {formula!r}: {error}. {HINT}'
            ) from error
        done.append(out.double())
    out = torch.stack(done)
    nothing = out[..., :1] < 0.5 * ABSENT  # rows whose every sample is absent
    log_mass = (out[..., 0] + out[..., 1].log() + log_scale).masked_fill_(
        nothing.squeeze(-1), -math.inf
    )
    shift = (out[..., 2:] / out[..., 1:2]).masked_fill_(nothing, 0.0)
    return log_mass.view(*lead, -1), shift.view(*lead, -1, D)


def keops_warmup(
    kernel: Kernel, dim: int, *, dtype: torch.dtype = torch.float32, skip_self: bool = False
) -> None:
    """Compile the sums of `kernel` in `dim` dimensions now: 8 to 12 seconds, once per formula, dimension and dtype.

    Bandwidths and numbers of points are no part of it. Raises: RuntimeError without pykeops or a compiler;
    ValueError for kernels without a formula.
    """
    points = torch.zeros(2, dim, dtype=dtype)
    forward(points, points, None, kernel, skip_self, dtype)
