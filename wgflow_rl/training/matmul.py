"""Float32 matrix products on a CPU: torch's default route, or oneDNN.

On processors with AVX-512, oneDNN can multiply float32 matrices much faster than torch's default (MKL). torch uses it
for `set_float32_matmul_precision("medium")`, which on some processors computes in bfloat16 instead. "auto" therefore
takes oneDNN where its products are float32 by their error: a rule without a clock, so that equal runs on one machine
round their sums alike. The result is stored in the run's config.json.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Route = Literal["auto", "default", "onednn"]

ROWS = 1024  # rows of a measured product: networks.BLOCK
# Largest accepted error, relative to the sum of the terms' magnitudes. At widths 64 to 512 float32 stays below 4e-7;
# factors rounded to TF32 give 1e-4 and more, to bfloat16 7e-4 and more.
MAX_ERROR = 1e-6
PRECISION = {"default": "highest", "onednn": "medium"}  # torch's name of each route


@contextlib.contextmanager
def using(route: Route) -> Iterator[None]:
    """Take `route` ("default" or "onednn") inside the block, and restore torch's setting after it.

    Raises:
        ValueError: If the route does not compute in float32 on this processor.
    """
    if route == "onednn":
        pairs = factors((64, 64))
        error = max_error(products(pairs, route), pairs)
        if error > MAX_ERROR:
            raise ValueError(
                f"--route is onednn, but on this processor its products have an error of {error:.0e}, which is not "
                f"float32 (allowed: {MAX_ERROR:g}). Use --route default; sums are then rounded differently."
            )
    with _precision(PRECISION[route]):
        yield


def resolve(route: Route, hidden: Sequence[int], *, device: str = "cpu") -> Route:
    """Replace "auto" by oneDNN if its products for hidden layers of these widths are float32, else by the default."""
    if route != "auto":
        return route
    if torch.device(device).type != "cpu":
        return "default"
    pairs = factors(hidden)
    default, onednn = products(pairs, "default"), products(pairs, "onednn")
    if all(torch.equal(a, b) for a, b in zip(default, onednn, strict=True)):
        return "default"  # identical bits: this processor has one route
    return "onednn" if max_error(onednn, pairs) <= MAX_ERROR else "default"


def factors(hidden: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Factors of the products between consecutive hidden layers: forward, and both of the backward pass."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for a, b in sorted(set(itertools.pairwise(hidden))):
        shapes = (ROWS, a), (b, a), (ROWS, b)
        x, weight, gradient = (torch.randn(shape, generator=generator) for shape in shapes)
        pairs += [(x, weight.T), (gradient, weight), (gradient.T, x)]
    return pairs


def products(pairs: Sequence[tuple[Tensor, Tensor]], route: Route) -> list[Tensor]:
    with _precision(PRECISION[route]):
        return [left @ right for left, right in pairs]


def max_error(computed: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Largest error of an entry against float64, relative to the sum of its terms' magnitudes."""
    worst = 0.0
    for product, (left, right) in zip(computed, pairs, strict=True):
        left, right = left.double(), right.double()
        error = (product.double() - left @ right).abs() / (left.abs() @ right.abs())
        worst = max(worst, float(error.max()))
    return worst


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
