r"""Sums by pykeops: one fused reduction without a matrix of pairs; needs pykeops and a compiler.

KeOps (Charlier et al. 2021, JMLR 22) compiles each formula, dimension and dtype once, 8 to 12 seconds, into its cache.
This module takes care of its pitfalls: one dtype for all arguments (mixed ones give wrong numbers silently), finite
weights (-inf gives NaN), no half precision, contiguous arguments, no build messages, the length scale as a parameter.
"""

from __future__ import annotations

import functools
import importlib
import math
import os

import torch
from torch import Tensor

from wgflow.kernels import Gaussian, Kernel, Laplace, Matern, RationalQuadratic, Scaled
from wgflow.kernels.matern import FLOAT32_ORDER
from wgflow.reductions.blocked import flatten
from wgflow.reductions.dense import exact_centre

__all__ = ["keops_warmup"]

ABSENT = -1e30  # log weight of a removed sample: finite, since -inf gives NaN in KeOps
HINT = 'Install it with pip install "wgflow[keops]" and g++ with the Python headers, or use backend="auto".'


def formula_of(kernel: Kernel) -> tuple[str, list[float], float]:
    """(log k as a KeOps formula with parameters G, the parameters, log scale). Raises: ValueError if there is none."""
    match kernel:
        case Scaled(inner, log_scale):
            formula, parameters, more = formula_of(inner)
            return formula, parameters, log_scale + more
        case Gaussian():
            return "-(G * SqDist(X, Y))", [0.5 / kernel.h**2], 0.0
        case Laplace():
            return "-(G * Sqrt(SqDist(X, Y)))", [1 / kernel.h], 0.0
        case Matern() if kernel.order <= FLOAT32_ORDER:
            # Horner's scheme of the polynomial: Elem(G, i) are its coefficients.
            u = "(Elem(G, 0) * Sqrt(SqDist(X, Y)))"
            poly = f"Elem(G, {kernel.order + 1})"
            for i in range(kernel.order, 0, -1):
                poly = f"({poly} * {u} + Elem(G, {i}))"
            return f"Log({poly}) - {u}", [1 / kernel.decay_length, *kernel.coefficients], 0.0
        case RationalQuadratic():
            formula = "-(Elem(G, 1) * Log(IntCst(1) + Elem(G, 0) * SqDist(X, Y)))"
            return formula, [1 / kernel.sq_scale, kernel.alpha], 0.0
    raise ValueError(
        f"{kernel!r} has no KeOps formula here (compact and singular kernels need -inf, which KeOps turns into NaN; "
        f"Matern kernels beyond nu = {FLOAT32_ORDER + 0.5} leave float32); "
        'use backend="blocked" or "auto".'
    )


@functools.cache
def genred():
    """`pykeops.torch.Genred`, imported silently at first use. Raises: RuntimeError without pykeops."""
    # Both variables are read at import, and one alone leaves half of the messages on; respect what the user has set.
    # If another package has imported pykeops before, `set_verbose` below.
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
            f'backend="keops" is not available: pykeops does not import ({error}). {HINT}'
        ) from error
    return found


@functools.cache
def reduction(formula: str, parameters: int, dim: int, skip_self: bool):
    """The compiled sums [maximum, Σ e, Σ e (y - x)] of one formula and dimension."""
    variables = [f"X = Vi({dim})", f"Y = Vj({dim})", "W = Vj(1)", f"G = Pm({parameters})"]
    formula = f"W + {formula}"
    if skip_self:  # the own sample is recognised by its number
        variables += ["I = Vi(1)", "J = Vj(1)", "A = Pm(1)"]
        formula += " + A * (IntCst(1) - Sign(Square(I - J)))"
    step = "Concat(IntCst(1), Y - X)"
    return genred()(formula, variables, reduction_op="Max_SumShiftExpWeight", axis=1, formula2=step)


def forward(x, y, log_weights, kernel, skip_self, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(log_mass, shift, infinity) in float64, summed by KeOps in `dtype`; one call per batch element.

    KeOps sums y - x itself, so that no row is refined: infinity stands for the mean square distance.

    Raises:
        RuntimeError: Without pykeops or a compiler.
        ValueError: For kernels without a formula.
    """
    formula, parameters, log_scale = formula_of(kernel)
    lead, x, y, log_weights = flatten(x, y, log_weights, skip_self)
    B, N, D = x.shape
    run = reduction(formula, len(parameters), D, skip_self)
    like = {"dtype": dtype, "device": x.device}
    G, absent = torch.tensor(parameters, **like), torch.tensor([ABSENT], **like)
    origin = exact_centre(y, log_weights).double()
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
        except (ImportError, OSError, RuntimeError) as error:  # ImportError: a missing compiler
            raise RuntimeError(
                f'backend="keops" cannot compile {formula!r}: {error}. {HINT}'
            ) from error
        done.append(out.double())
    out = torch.stack(done)
    nothing = out[..., :1] < 0.5 * ABSENT  # rows without any sample
    log_mass = (out[..., 0] + out[..., 1].log() + log_scale).masked_fill_(
        nothing.squeeze(-1), -math.inf
    )
    shift = (out[..., 2:] / out[..., 1:2]).masked_fill_(nothing, 0.0)
    log_mass, shift = log_mass.view(*lead, -1), shift.view(*lead, -1, D)
    return log_mass, shift, torch.full_like(log_mass, math.inf)


def keops_warmup(
    kernel: Kernel, dim: int, *, dtype: torch.dtype = torch.float32, skip_self: bool = False
) -> None:
    """Compile the KeOps sums of `kernel` in `dim` dimensions: 8 to 12 seconds per formula, dimension and dtype.

    Length scales and numbers of points do not matter. Raises: RuntimeError without pykeops or a compiler;
    ValueError for kernels without a formula.
    """
    points = torch.zeros(2, dim, dtype=dtype)
    forward(points, points, None, kernel.standardize()[0], skip_self, dtype)
