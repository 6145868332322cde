"""Promised accuracy of the kernel sums against the worst error of any row, for every backend and kernel.

    python benchmarks/accuracy.py            # one core, some minutes; writes results/accuracy.json and .md
    python benchmarks/accuracy.py --clouds "D = 2" offset --backends auto --out try

A mean shift Σ_j W_ij (y_j - x_i) of row i may err by `explain_backend(...).error` times the root mean square of the
distances |y_j - x_i| under the weights W_ij, and by rounding: the result to its dtype, coordinates and logarithms of
w k to a few units in the last place of float64 (see `rounding`). The reference is a direct sum in 80-bit floats.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _cli import script_parser
from _results import RESULTS, markdown, write_results

import wgflow as wg
from wgflow.kernels import Riesz
from wgflow_rl.utils.files import write_whole

N, M, ROWS = 200, 700, 24  # points, samples, rows that are compared
WIDE = 64  # the largest dimension in which every kernel and backend is compared
ULPS = 8  # of float64, the errors of coordinates and logarithms that rounding may cause


@dataclass(frozen=True)
class Cloud:
    """Points x [N, D], samples y [M, D], weights [M] or None, and a length for the kernels."""

    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor | None
    h: float


def clouds() -> dict[str, Cloud]:
    """The inputs by name, in float64."""
    found = {}
    for dim in (1, 2, 8, 64, 512, 2048, 4096):
        x, y = normal(N, dim, seed=1), normal(M, dim, seed=2)
        for share in (0.05, 0.2) if dim <= WIDE else (0.2,):
            found[f"normal, D = {dim}, h = {share} of the mean distance"] = Cloud(
                x, y, None, share * (2 * dim) ** 0.5
            )
    for dim in (2, 64, 512, 3072):
        corner = torch.ones(dim).double()
        signs = torch.arange(M).remainder(2).mul(2).sub(1).unsqueeze(-1)
        for spread in (1e-2, 1e-4, 1e-6) if dim <= WIDE else (1e-3,):
            y = signs * corner + spread * normal(M, dim, seed=3)
            x = signs[:N] * corner + spread * normal(N, dim, seed=4)
            h = 0.1 * dim**0.5
            found[f"clusters of width {spread:g} at ±1, D = {dim}"] = Cloud(x, y, None, h)
    x, y = normal(N, 2, seed=5), normal(M, 2, seed=6)
    found["points among the samples, narrow kernel"] = Cloud(y[:N], y, None, 0.02)
    found["points among the samples, D = 64"] = Cloud(*(2 * [normal(M, 64, seed=6)]), None, 1.0)
    for offset in (1e3, 1e6):
        found[f"offset {offset:g}"] = Cloud(x + offset, y + offset, None, 0.4)
    for far in (1e3, 1e6, 1e18):
        outlier = torch.cat([y[1:], torch.full((1, 2), far, dtype=y.dtype)])
        found[f"one sample at {far:g}"] = Cloud(x, outlier, None, 0.4)
        absent = torch.ones(M, dtype=y.dtype)
        absent[-1] = 0
        found[f"one sample at {far:g} of weight 0"] = Cloud(x, outlier, absent, 0.4)
    found["a point at 1e4"] = Cloud(torch.cat([x[1:], 0 * x[:1] + 1e4]), y, None, 0.4)
    exponents = torch.linspace(-30, 0, M, dtype=y.dtype)
    weights = 10 ** exponents[torch.randperm(M, generator=torch.Generator().manual_seed(7))]
    found["weights from 1e-30 to 1"] = Cloud(x, y, weights, 0.4)
    found["the lightest samples are the nearest"] = Cloud(
        x, torch.cat([3 + 0.01 * y[:10], y[10:]]), weights.sort().values, 0.2
    )
    found["half of the weights 0"] = Cloud(x, y, weights * (weights > 1e-15), 0.4)
    return found


def normal(n: int, dim: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=g, dtype=torch.float64)


KERNELS = {
    "Gaussian": lambda h: wg.Gaussian(h),
    "Laplace": lambda h: wg.Laplace(h),
    "Matérn 5/2": lambda h: wg.Matern(h, nu=2.5),
    "rational quadratic": lambda h: wg.RationalQuadratic(h, 2.0),
    "Epanechnikov": lambda h: wg.epanechnikov(10 * h),
    "Riesz": lambda h: Riesz(1.0),
}
KEOPS = ("Gaussian", "Laplace", "Matérn 5/2", "rational quadratic")
KEOPS_DIMENSIONS = (2, 64)  # each compiles a formula per kernel and dtype


def backends(kernel: str, dim: int) -> list[str]:
    """The backends that are compared for a kernel and a dimension; in wide clouds the fast ones alone."""
    if dim > WIDE:
        return {"Gaussian": ["auto", "gemm"], "Laplace": ["auto"] * (dim in (512, 3072))}.get(
            kernel, []
        )
    return (
        ["auto", "dense", "blocked"]
        + ["gemm"] * (kernel == "Gaussian")
        + ["keops"] * (kernel in KEOPS and dim in KEOPS_DIMENSIONS)
    )


def log_kernel(name: str, r: np.ndarray, h: float) -> np.ndarray:
    """log k at distances in 80-bit floats, written again from the definitions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        match name:
            case "Gaussian":
                return -(r**2) / (2 * h**2)
            case "Laplace":
                return -r / h
            case "Matérn 5/2":
                u = np.sqrt(np.longdouble(5)) * r / h
                return np.log1p(u + u**2 / 3) - u
            case "rational quadratic":
                return -2 * np.log1p(r**2 / (4 * h**2))
            case "Epanechnikov":
                inside = r < 10 * h
                return np.where(
                    inside, np.log1p(-np.where(inside, (r / (10 * h)) ** 2, 0)), -np.inf
                )
            case "Riesz":
                return np.where(r == 0, -np.inf, -np.log(r))
    raise ValueError(f"kernel = {name!r}; wanted one of {', '.join(KERNELS)}.")


def reference(x, y, weights, kernel: str, h: float) -> dict[str, np.ndarray]:
    """Shifts of some rows, the root mean square distances they average, and their rounding, in 80-bit floats."""
    x, y, h = (np.asarray(t, dtype=np.longdouble) for t in (x, y, h))
    log_w = np.zeros(len(y), dtype=np.longdouble)
    if weights is not None:
        with np.errstate(divide="ignore"):
            log_w = np.log(np.asarray(weights, dtype=np.longdouble))
    rows: dict[str, list] = {"shift": [], "rms": [], "rounding": []}
    for point in x:
        step = y - point
        r = np.sqrt((step**2).sum(-1))
        logits = log_kernel(kernel, r, h) + log_w
        top = logits.max()
        W = np.exp(logits - top) if top > -np.inf else np.zeros_like(logits)
        W = W / max(W.sum(), np.longdouble(1e-300))
        with np.errstate(invalid="ignore"):
            size = np.sqrt(np.where(W > 0, W * logits**2, 0).sum())
        rms = np.sqrt((W * r**2).sum())
        rows["shift"].append(W @ step)
        rows["rms"].append(rms)
        # Coordinates about the origin or nearer, and logarithms of w k with sums over D.
        coordinates = np.sqrt((point**2).sum()) + np.sqrt((W * (y**2).sum(-1)).sum())
        rows["rounding"].append(coordinates + (1 + size) * rms)
    return {name: np.stack(values) for name, values in rows.items()}


def compare(cloud: Cloud, dtype: torch.dtype, kernel: str, backends: list[str]) -> list[dict]:
    """A row per backend: promised and found error, and their ratio at the worst row."""
    x, y = cloud.x.to(dtype), cloud.y.to(dtype)
    if kernel == "Gaussian" and x.shape[-1] > WIDE:
        x = x[:ROWS]  # enough for matrix products
    weights = None if cloud.weights is None else cloud.weights.to(dtype)
    log_weights = None if weights is None else weights.log()
    k = KERNELS[kernel](cloud.h)
    # The reference of a row takes M D steps.
    at = torch.linspace(0, len(x) - 1, ROWS if x.shape[-1] <= WIDE else ROWS // 3).long()
    # Logarithms of weights as they are passed, rounded to their dtype.
    given = None if log_weights is None else log_weights.double().numpy().astype(np.longdouble)
    with np.errstate(under="ignore"):
        exact = reference(
            x[at].double().numpy(), y.double().numpy(), None if given is None else np.exp(given),
            kernel, cloud.h,
        )  # fmt: skip
    rows = []
    for backend in backends:
        how = {"kernel": k, "log_weights": log_weights, "backend": backend}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            choice = wg.explain_backend(x, y, **how)
            try:
                shift = wg.kernel_shift(x, y, **how)[1][at]
            except RuntimeError as error:
                rows.append({"backend": backend, "skipped": str(error).splitlines()[0][:80]})
                continue
        error = np.sqrt(((shift.double().numpy() - exact["shift"]) ** 2).sum(-1))
        length = np.sqrt((exact["shift"] ** 2).sum(-1))
        eps = torch.finfo(torch.float64).eps
        bound = (choice.error or 0.0) * exact["rms"] + ULPS * eps * exact["rounding"]
        bound = bound + torch.finfo(dtype).eps * length + np.longdouble(1e-300)
        worst = int((error / bound).argmax())
        scale = max(exact["rms"][worst], np.longdouble(1e-300))
        rows.append(
            {
                "backend": backend,
                "ran": f"{choice.backend} {str(choice.dtype)[6:]}",
                "promised": float(f"{bound[worst] / scale:.2g}"),
                "found": float(f"{error[worst] / scale:.2g}"),
                "ratio": float(f"{error[worst] / bound[worst]:.2g}"),
            }
            | ({"warned": True} if said else {})
        )
    return rows


def table(rows: list[dict]) -> str:
    """The worst ratio of each cloud and kernel over backends and dtypes, and the largest errors of `auto`."""
    lines = [
        "Errors of one row, divided by the root mean square of the distances that it averages: largest ratio of the",
        "error found to the error promised over rows, clouds and, in the columns, backends. Written by accuracy.py.",
        "",
    ]
    for dtype in ("float32", "float64"):
        body = []
        for cloud in dict.fromkeys(r["cloud"] for r in rows):
            cells = []
            for kernel in KERNELS:
                here = [
                    r
                    for r in rows
                    if (r["cloud"], r["dtype"], r["kernel"]) == (cloud, dtype, kernel)
                    and "ratio" in r
                ]
                if not here:
                    cells.append("")
                    continue
                worst = max(here, key=lambda r: r["ratio"])
                auto = next((r for r in here if r["backend"] == "auto"), worst)
                cells.append(f"{worst['ratio']:.2g} ({auto['found']:.0e})")
            body.append([cloud, *cells])
        lines += [f"## {dtype}", "", *markdown(" | ".join(["cloud", *KERNELS]), body), ""]
    lines.append(
        "In brackets the error of `auto` in its worst row. Below 1: the promise holds. "
        f"{sum('ratio' in r for r in rows)} comparisons of up to {ROWS} rows, "
        f"{sum(r.get('ratio', 0) > 1 for r in rows)} violations."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy")
    parser.add_argument("--clouds", nargs="+", help="only clouds whose name contains one of these")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS))
    parser.add_argument("--backends", nargs="+", help="default: all that have the kernel")
    parser.add_argument(
        "--keops", action="store_true", help="KeOps too: 10 s per kernel, dtype and D"
    )
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    start = time.process_time()
    for name, cloud in clouds().items():
        if a.clouds and not any(part in name for part in a.clouds):
            continue
        for kernel in a.kernels:
            for dtype in (torch.float32, torch.float64):
                names = backends(kernel, cloud.x.shape[-1])
                names = [
                    b
                    for b in names
                    if (b != "keops" or a.keops) and (not a.backends or b in a.backends)
                ]
                setting = {"cloud": name, "kernel": kernel, "dtype": str(dtype)[6:]}
                found = [setting | row for row in compare(cloud, dtype, kernel, names)]
                rows += found
                for row in found:
                    if row.get("ratio", 0) > 1 or "skipped" in row:
                        print(row, flush=True)
        write_results(a.out.with_suffix(".json"), {"torch": torch.__version__, "rows": rows})
        write_whole(a.out.with_suffix(".md"), table(rows))
    print(f"{sum('ratio' in r for r in rows)} comparisons, "
          f"{sum(r.get('ratio', 0) > 1 for r in rows)} violations, "
          f"{time.process_time() - start:.0f} s of processor time")  # fmt: skip


if __name__ == "__main__":
    main()
