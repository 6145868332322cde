"""Sums of kernels other than the Gaussian: this checkout, another one, and plain KeOps, in turns on one core.

    git worktree add ../before COMMIT
    python benchmarks/radial_sums.py --against ../before     # writes results/radial_sums.json and .md; some minutes

Standard normal clouds of N points in float32, kernels of .2 times their mean distance. The energy field is that of x
with positives y and negatives another cloud z; the others are mean shifts. KeOps sums the same without a reference
exponent (unit vectors, or two weighted sums), which is its fastest form. Every variant is a process of its own with
one thread: milliseconds of processor time, the least of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from _cli import script_parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.environ.get("CHECKOUT", str(ROOT)))

CASES = ("energy", "Laplace", "Matérn 5/2")
OURS, OTHER, KEOPS = "this checkout", "the other checkout", "KeOps"


def runner(case: str, keops: bool, n: int, dim: int):
    """A function without arguments that computes the field, [N, D]."""
    import torch

    import wgflow as wg

    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(n, dim, generator=g) for _ in range(3))
    h = 0.2 * (2 * dim) ** 0.5
    if keops:
        return keops_runner(case, x, y, z, h)
    if case == "energy":
        return lambda: wg.energy_field(x, y, z)
    kernel = wg.Laplace(h) if case == "Laplace" else wg.Matern(h, 2.5)
    return lambda: wg.kernel_shift(x, y, kernel=kernel)[1]


def keops_runner(case: str, x, y, z, h: float):
    import torch
    from pykeops.torch import Genred

    dim = x.shape[1]
    clouds = [f"X = Vi({dim})", f"Y = Vj({dim})"]
    if case == "energy":
        pull = Genred("Rsqrt(SqDist(X, Y)) * (Y - X)", clouds, reduction_op="Sum", axis=1)
        return lambda: (pull(x, y) - pull(x, z)) / len(x)
    u = "(G * Sqrt(SqDist(X, Y)))"
    k = f"Exp(-{u})"
    if case != "Laplace":
        k = f"((IntCst(1) + {u} + Square({u}) / IntCst(3)) * {k})"
    sums = Genred(
        f"{k} * Concat(IntCst(1), Y - X)", [*clouds, "G = Pm(1)"], reduction_op="Sum", axis=1
    )
    g = torch.tensor([(1.0 if case == "Laplace" else 5**0.5) / h])
    return lambda: (lambda s: s[:, 1:] / s[:, :1])(sums(x, y, g))


def serve(variant: str, n: int, dim: int) -> None:
    """For every case that comes in, sum once, and answer with the seconds and some entries of the result."""
    import torch

    torch.set_num_threads(1)
    known = {}
    for line in sys.stdin:
        case = line.strip()
        if case not in known:
            known[case] = runner(case, variant == KEOPS, n, dim)
            known[case]()  # compiles, and warms up
        start = time.process_time()
        result = known[case]()
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "rows": result[:20].tolist()}), flush=True)


def measure(a: argparse.Namespace, dim: int) -> list[dict]:
    import numpy as np

    places = {OURS: ROOT, KEOPS: ROOT} | ({OTHER: a.against.resolve()} if a.against else {})
    variants = {}
    for name, place in places.items():
        command = [sys.executable, __file__, "--serve", name, "--n", str(a.n), "--dims", str(dim)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CHECKOUT": str(place)}
        environment |= {"PYKEOPS_VERBOSE": "0", "KEOPS_VERBOSE": "0"}  # else they write to stdout
        variants[name] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    rows = []
    for case in CASES:
        row = {"case": case, "n": a.n, "dim": dim, "seconds": {}}
        fields = {}
        for _ in range(a.rounds):
            for name, process in variants.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(case + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                row["seconds"].setdefault(name, []).append(answer["seconds"])
                fields[name] = np.array(answer["rows"])
        for name, field in fields.items():
            far = np.linalg.norm(field - fields[OURS]) / np.linalg.norm(field)
            assert far < 1e-3, f"{case}, D = {dim}: {name} differs by {far:.1e}"
        rows.append(row)
        print(row, flush=True)
    for process in variants.values():
        process.kill()
        process.wait()
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "Milliseconds of processor time, one thread, least of all rounds; in brackets the ratio to this checkout.",
        "",
        f"| sum | N = M, D | {OURS} | {OTHER} | {KEOPS} |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        least = {name: 1e3 * min(times) for name, times in row["seconds"].items()}
        cells = [
            f"{least[name]:.0f} (×{least[name] / least[OURS]:.1f})" if name in least else "–"
            for name in (OTHER, KEOPS)
        ]
        size = f"{row['n']:,}, {row['dim']}"
        lines.append(f"| {row['case']} | {size} | {least[OURS]:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 25, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "radial_sums")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve(a.serve, a.n, a.dims[0])
        return
    from _provenance import provenance
    from _results import write_results

    rows: list[dict] = []
    for dim in a.dims:
        rows += measure(a, dim)
        write_results(a.out.with_suffix(".json"), {"provenance": provenance(), "rows": rows})
        a.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
