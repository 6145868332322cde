"""Float32 matrix products on a CPU: torch's default route (MKL), or oneDNN's on processors with AVX-512.

torch uses oneDNN for `set_float32_matmul_precision("medium")`, which on some processors computes in bfloat16 instead;
there the route is refused. No route is chosen by time: where the two differ by a few percent, equal runs on one machine
would round their sums differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Route = Literal["default", "onednn"]

ROWS = 1024  # rows of a measured product: networks.BLOCK
# Largest accepted error, relative to the sum of the terms' magnitudes. At widths 64 to 512 float32 stays below 4e-7;
# factors rounded to TF32 give 1e-4 and more, to bfloat16 7e-4 and more.
MAX_ERROR = 1e-6
PRECISION = {"default": "highest", "onednn": "medium"}  # torch's name of each route


@contextlib.contextmanager
def using(route: Route) -> Iterator[None]:
    """Take `route` inside the block, and restore torch's setting after it.

    Raises:
        ValueError: If the route does not compute in float32 on this processor.
    """
    if route == "onednn":
        generator = torch.Generator().manual_seed(0)
        x, w = (torch.randn(n, 64, generator=generator) for n in (ROWS, 64))
        error = max_error(product(x, w, route), x, w)
        if error > MAX_ERROR:
            raise ValueError(
                f"--route is onednn, but on this processor its products have an error of {error:.0e}, which is not "
                f"float32 (allowed: {MAX_ERROR:g}). Use --route default; sums are then rounded differently."
            )
    with _precision(PRECISION[route]):
        yield


def product(x: Tensor, w: Tensor, route: Route) -> Tensor:
    with _precision(PRECISION[route]):
        return x @ w


def max_error(computed: Tensor, x: Tensor, w: Tensor) -> float:
    """Largest error of an entry of x w against float64, relative to the sum of its terms' magnitudes."""
    x, w = x.double(), w.double()
    return float(((computed.double() - x @ w).abs() / (x.abs() @ w.abs())).max())


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    # From torch 2.9 on, set_float32_matmul_precision also writes these per-backend settings, and setting the old name
    # again does not restore them; reading the name fails where a caller has set one of them directly.
    backends: tuple[Any, Any] = (
        getattr(torch.backends.mkldnn, "matmul", None),
        torch.backends.cuda.matmul,
    )
    newer = [(b, b.fp32_precision) for b in backends if hasattr(b, "fp32_precision")]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        before = "highest"
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, value in newer:
            backend.fp32_precision = value
