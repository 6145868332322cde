"""Time, memory and error of every backend of the kernel sums, next to scikit-learn, SciPy and plain KeOps.

    python benchmarks/sums.py                      # writes results/sums.json and results/sums.md; about half an hour
    python benchmarks/sums.py --quick --out /tmp/sums

Two standard normal clouds of N points, a Gaussian kernel of .2 times their mean distance, float32. The peers compute
the log density only, in float64, since they know no other; the backends compute it together with the mean shift.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, write_results
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

import wgflow as wg
from wgflow_rl.experiments.job import THREADS

OURS = ("auto", "gemm", "gemm float64", "dense", "blocked", "keops")
PEERS = ("scikit-learn", "scipy")
ROWS = 200  # of the points, for the error against direct differences in float64


def clouds(n: int, dim: int):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(n, dim, generator=g) for _ in range(2))


def runner(name: str, x, y, h: float):
    """A function that computes (log_mass, shift), or log_mass alone for the peers."""
    offset = math.log(len(y)) + 0.5 * x.shape[1] * math.log(2 * math.pi * h * h)
    if name == "scikit-learn":
        tree = KernelDensity(bandwidth=h, rtol=0, atol=0, leaf_size=200).fit(y.double().numpy())
        points = x.double().numpy()
        return lambda: (tree.score_samples(points) + offset, None)
    if name == "scipy":
        kde, points = scipy_kde(y.double().numpy(), h), x.double().numpy()
        return lambda: (kde.logpdf(points.T) + offset, None)
    if name == "gemm float64":
        x, y, name = x.double(), y.double(), "gemm"
    return lambda: wg.kernel_shift(x, y, kernel=wg.Gaussian(h), backend=name)


def scipy_kde(samples: np.ndarray, h: float) -> gaussian_kde:
    """SciPy's estimate from samples [M, D] with bandwidth h; its own would follow their covariance."""
    kde, dim = gaussian_kde(samples.T), samples.shape[1]
    kde.covariance, kde.cho_cov = h * h * np.eye(dim), h * np.eye(dim)
    kde.log_det = 2 * dim * math.log(h * math.sqrt(2 * math.pi))
    return kde


def peak(run):
    """(result, extra memory of a call at its peak in MB): Linux's high-water mark of the process, set back first."""
    try:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # memory that earlier calls left behind would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return run(), None
    before = status("VmRSS")
    result = run()
    return result, (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def errors(result, x, y, h: float) -> dict:
    """Largest error of log_mass, and of the field relative to its root mean square."""
    mass, shift = wg.kernel_shift(
        x[:ROWS].double(), y.double(), kernel=wg.Gaussian(h), backend="blocked"
    )
    found = torch.as_tensor(result[0][:ROWS]).double()
    out = {"log_mass_error": float((found - mass).abs().amax())}
    if result[1] is not None:
        out["field_error"] = float((result[1][:ROWS].double() - shift).norm() / shift.norm())
    return out


def cell(names: list[str], n: int, dim: int, threads: int, cap: float, known: dict) -> list[dict]:
    """Rows of one size: the backends in turn, several rounds, the fastest of each; hopeless ones are left out."""
    x, y = clouds(n, dim)
    h = 0.2 * math.sqrt(2 * dim)
    rows, runs = [], {}
    clock = (
        time.process_time if threads == 1 else time.perf_counter
    )  # one thread: what others do does not count
    for name in names:
        row = {"backend": name, "n": n, "dim": dim, "threads": threads}
        expected = known.get((name, dim), 0.0) * n * n
        if name == "dense" and n > 2e4:
            row["skipped"] = "the matrix of pairs does not fit"
        elif expected > cap:
            row["skipped"] = f"about {expected:.0f} s expected"
        else:
            run = runner(name, x, y, h)
            if name == "keops":
                wg.keops_warmup(wg.Gaussian(h), dim)
            start = clock()
            result, row["peak_mb"] = peak(run)
            row["seconds"] = clock() - start
            row |= errors(result, x, y, h)
            runs[name] = (row, run)
        rows.append(row)
    for _ in range(3 if n < 50_000 else 0):  # the largest size: once
        for row, run in runs.values():
            if row["seconds"] > 5:
                continue
            spent, repeats = 0.0, 0
            while repeats < 5 and (repeats == 0 or spent < 0.5):
                start = clock()
                run()
                took = clock() - start
                spent, repeats = spent + took, repeats + 1
                row["seconds"] = min(took, row["seconds"])
    for name, (row, _) in runs.items():
        known[name, dim] = row["seconds"] / n**2
    rows[0]["chosen"] = str(wg.explain_backend(x, y, kernel=wg.Gaussian(h)))
    return rows


def work(a: argparse.Namespace) -> None:
    """One process of one thread count: OMP_NUM_THREADS holds for KeOps too."""
    torch.set_num_threads(a.worker)
    known: dict = {}
    for n in a.sizes:
        for dim in a.dims:
            names = [b for b in OURS if b in a.backends] + [
                b for b in PEERS if b in a.backends and dim <= 8
            ]
            for row in cell(names, n, dim, a.worker, a.cap, known):
                print(json.dumps(row), flush=True)


def table(rows: list[dict]) -> str:
    """Milliseconds (and the ratio to auto), a table for each number of threads; then memory and errors of auto."""
    lines = []
    for threads in sorted({r["threads"] for r in rows}):
        here = [r for r in rows if r["threads"] == threads]
        columns = sorted({(r["n"], r["dim"]) for r in here})
        unit = "milliseconds of processor time" if threads == 1 else "milliseconds"
        body = []
        for n, dim in columns:
            cells = {r["backend"]: r for r in here if (r["n"], r["dim"]) == (n, dim)}
            base = cells.get("auto", {}).get("seconds")
            words = []
            for b in (*OURS, *PEERS):
                r = cells.get(b, {})
                if "seconds" not in r:
                    words.append("–")
                elif b == "auto" or not base:
                    words.append(f"{1e3 * r['seconds']:.3g}")
                else:
                    words.append(f"{1e3 * r['seconds']:.3g} (×{r['seconds'] / base:.2g})")
            body.append([f"{n:,}, {dim}", *words])
        header = " | ".join(["N = M, D", *OURS, *PEERS])
        lines += [f"## Threads: {threads} ({unit})", "", *markdown(header, body), ""]
    body = []
    for r in rows:
        if r["backend"] == "auto" and "seconds" in r:
            mb = r.get("peak_mb")
            memory = "–" if mb is None else f"{mb:.0f}"
            size = f"{r['n']:,}, {r['dim']}, {r['threads']}"
            errors = [f"{r[name]:.0e}" for name in ("log_mass_error", "field_error")]
            body.append([size, r.get("chosen", ""), memory, *errors])
    lines += ["## What auto chose, its peak memory and its error", ""]
    header = (
        "N = M, D, threads | chosen | extra MB | error of log mass | relative error of the field"
    )
    lines += markdown(header, body)
    left = sorted({(r["backend"], r["n"], r["dim"], r["skipped"]) for r in rows if "skipped" in r})
    if left:
        lines += [
            "",
            "Left out: "
            + "; ".join(f"{b} at N = {n:,}, D = {d} ({why})" for b, n, d, why in left)
            + ".",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--backends", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument(
        "--cap", type=float, default=60.0, help="seconds a call may be expected to take"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "sums",
        help="without suffix",
    )
    parser.add_argument(
        "--quick", action="store_true", help="N = 1,000 and 3,000, D = 2 and 8, no KeOps"
    )
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.quick:
        a.sizes, a.dims = [1_000, 3_000], [2, 8]
        a.backends = [b for b in a.backends if b != "keops"]
    if a.worker:
        work(a)
        return
    a.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for threads in a.threads:
        options = ["--sizes", *map(str, a.sizes), "--dims", *map(str, a.dims), "--cap", str(a.cap)]
        command = [
            sys.executable,
            __file__,
            *options,
            "--backends",
            *a.backends,
            "--worker",
            str(threads),
        ]
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                rows.append(json.loads(line))
                print(line, end="", flush=True)
                whole = {"provenance": provenance(), "rows": rows}
                write_results(a.out.with_suffix(".json"), whole)
                a.out.with_suffix(".md").write_text(
                    "# Backends of the kernel sums\n\n" + table(rows)
                )
        if process.returncode:
            raise SystemExit(process.returncode)
    print(table(rows))


if __name__ == "__main__":
    main()
