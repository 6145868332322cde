"""How a run multiplies float32 matrices: measured once a machine, kept while the run lasts, put back after it.

Processors with AVX-512 may multiply float32 much faster through oneDNN than through torch's own choice (MKL). torch
takes that route when it is allowed a lower precision ("medium"), and then some processors keep float32 while others
really compute in bfloat16. So a route is taken only where its products are float32 by their error, and faster by the
clock. A resumed run takes the route of its config.json: its sums are rounded as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wgflow_rl.data import cache_root
from wgflow_rl.utils.files import make_folder, write_whole

Route = Literal["auto", "default", "onednn"]
Precision = Literal["f32", "tf32", "mixed"]

ROWS = 1024  # vectors of a measured product: networks.BLOCK
REPEATS = 5  # of which the fastest counts
GAIN = 1.05  # a route is left for one that is at least so many times faster
# Of the terms' summed magnitudes, at worst. At widths 64 to 512 float32 stays under 4e-7; factors cut to the bits of
# TF32 give 1e-4 and more, to those of bfloat16 7e-4 and more.
ERROR = 1e-6
# A route, as torch names the precision that it may use there.
PRECISION: dict[Route, str] = {"default": "highest", "onednn": "medium"}

Factors = list[tuple[Tensor, Tensor]]


# ---- torch's state -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def applied(route: Route, *, precision: Precision = "f32", device: str = "cpu") -> Iterator[None]:
    """Inside, float32 products take this route (CPU) or this precision (GPU); outside, torch is as it was.

    Raises: ValueError, with nothing changed, if the route does not give float32 on this processor.
    """
    if torch.device(device).type != "cpu":
        name = "highest" if precision == "f32" else "high"
    else:
        name = PRECISION[route]
        pairs = factors((64, 64))
        if route != "default" and (error := worst_error(multiplied(pairs, route), pairs)) > ERROR:
            raise ValueError(
                f"the route is {route}, but this processor's products are then wrong by {error:.0e}, which is no "
                f"float32 (allowed: {ERROR:g}). Use --route default, also with --resume: its sums are then rounded in "
                "another way than before."
            )
    with _matmul_precision(name):
        yield


@contextlib.contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    backends = torch.backends
    # From torch 2.9 on the call below writes into these, and setting the former name again leaves other values there.
    both: tuple[Any, Any] = (getattr(backends.mkldnn, "matmul", None), backends.cuda.matmul)
    places = [place for place in both if hasattr(place, "fp32_precision")]
    fine = [place.fp32_precision for place in places]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set a place of its own, which has no such name
        before = "highest"
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for place, value in zip(places, fine, strict=True):
            place.fp32_precision = value


# ---- measuring ---------------------------------------------------------------------------------------------------


def factors(hidden: Sequence[int]) -> Factors:
    """Those of the product between each two hidden layers, and of the two of its backward pass."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for a, b in sorted(set(itertools.pairwise(hidden))):
        x, w, g = (
            torch.randn(shape, generator=generator) for shape in ((ROWS, a), (b, a), (ROWS, b))
        )
        found += [(x, w.T), (g, w), (g.T, x)]
    return found


def multiplied(pairs: Factors, route: Route) -> list[Tensor]:
    with _matmul_precision(PRECISION[route]):
        return [left @ right for left, right in pairs]


def worst_error(got: Sequence[Tensor], pairs: Factors) -> float:
    """The largest |error| of an entry over the summed magnitudes of its terms, against float64."""
    worst = 0.0
    for product, (left, right) in zip(got, pairs, strict=True):
        left, right = left.double(), right.double()
        error = (product.double() - left @ right).abs() / (left.abs() @ right.abs())
        worst = max(worst, float(error.max()))
    return worst


def fastest(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each call, the fastest of several taken in turn after a first."""
    best = dict.fromkeys(calls, math.inf)
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if repeat:
                best[name] = min(best[name], time.process_time() - start)
    return best


def choose(hidden: Sequence[int]) -> tuple[Route, dict[str, float]]:
    """The faster route of those that give float32, and what was measured about it."""
    pairs = factors(hidden)
    plain, other = multiplied(pairs, "default"), multiplied(pairs, "onednn")
    if all(torch.equal(a, b) for a, b in zip(plain, other, strict=True)):
        return "default", {}  # the same bits: this processor has one route
    found = {"error": worst_error(other, pairs)}
    found |= fastest({route: lambda route=route: multiplied(pairs, route) for route in PRECISION})
    taken = found["error"] <= ERROR and found["default"] >= GAIN * found["onednn"]
    return ("onednn" if taken else "default"), found


def settle(route: Route, hidden: Sequence[int], *, device: str = "cpu") -> Route:
    """The route that "auto" stands for on this machine: measured, or what was measured before; others stay."""
    if route != "auto":
        return route
    if torch.device(device).type != "cpu":
        return "default"
    key = {"torch": torch.__version__, "processor": processor(), "hidden": list(hidden)}
    key["threads"] = torch.get_num_threads()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = cache_root() / "routes" / f"{name}.json"
    known = _read(path)
    if (
        known is not None
        and {k: known.get(k) for k in key} == key
        and known.get("route") in ("default", "onednn")
    ):
        return known["route"]
    chosen, found = choose(hidden)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run a moment
        make_folder(path.parent)
        write_whole(path, json.dumps(key | {"route": chosen, "measured": found}, indent=1) + "\n")
    return chosen


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def processor() -> str:
    """The processor's name and what it can do, as far as the system tells."""
    told = {platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told |= {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()


def warn_if_slow(hidden: Sequence[int], *, device: str = "cpu") -> None:
    """A RuntimeWarning with the measured ratio where a CPU takes longer over bfloat16 products than over float32's."""
    pairs = factors(hidden)[::3]  # those without gradient
    if torch.device(device).type != "cpu" or not pairs:
        return
    low = [(left.bfloat16(), right.bfloat16()) for left, right in pairs]
    took = fastest(
        {"f32": lambda: [a @ b for a, b in pairs], "bf16": lambda: [a @ b for a, b in low]}
    )
    if took["bf16"] > took["f32"]:
        warnings.warn(
            f"--precision mixed: bfloat16 products take {took['bf16'] / took['f32']:.1f} times as long as float32 ones "
            "on this processor; f32 is faster here.",
            RuntimeWarning,
            stacklevel=2,
        )
