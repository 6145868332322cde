"""Fast estimates of large clouds: sliced energy fields, averages through landmarks, score-debiased densities.

    python benchmarks/fast_estimates.py              # one thread; results/fast_estimates.{json,md}
    python benchmarks/fast_estimates.py --parts landmarks        # these rows anew, the others as they are
    python benchmarks/fast_estimates.py --n 5000 --out try

Times are of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results
from sklearn.neighbors import KernelDensity
from sums import scipy_kde

import wgflow as wg
from wgflow_rl.utils.files import write_whole

MEANS, SHARES, WIDTH = (
    (-2.0, 1.5),
    (0.6, 0.4),
    (0.5, 1.0),
)  # of a mixture, the same in each coordinate


def timed(call):
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def clusters(n: int, dim: int, g: torch.Generator) -> torch.Tensor:
    pos = 0.5 * torch.randn(n, dim, generator=g)
    pos[::3, 0] += 4.5
    pos[:, 0] -= 1.5
    return pos


def fields(n: int, dim: int, directions: list[int]) -> list[dict]:
    """Generated points around the origin, data in two clusters beside it; the exact field at some of the points."""
    g = torch.Generator().manual_seed(0)
    x, pos = torch.randn(n, dim, generator=g), clusters(n, dim, g)
    rows = n // 200
    wg.energy_field(x[:rows], pos, x[:1000])  # first calls load what they need
    wg.sliced_energy_field(x[:1000], pos[:1000], directions=1)
    # The own point counts in the mean here: a difference of 1/n.
    exact, seconds = timed(lambda: wg.energy_field(x[:rows], pos, x))
    results = []

    def add(name: str, V: torch.Tensor, took: float) -> None:
        error = ((V[:rows] - exact).norm() / exact.norm()).item()
        row = {"n": n, "dim": dim, "estimate": name, "seconds": took, "relative_error": error}
        results.append(row)
        print(row, flush=True)

    add("exact", exact, seconds * n / rows)
    for count in directions:
        add(f"{count} directions", *timed(partial(wg.SlicedEnergyField(count, g), x, pos)))
    part = n // 50
    V, took = timed(lambda: wg.energy_field(x[:rows], pos[:part], x[-part:]))
    add(f"{part:,} of each cloud", V, took * n / rows)
    return results


def landmarks(n: int, dim: int, h: float, counts: list[int], queries: int = 1000) -> list[dict]:
    """The mean shift of new points of the law of the data, exact and through landmarks chosen at random."""
    g = torch.Generator().manual_seed(0)
    y, x, kernel = clusters(n, dim, g), clusters(queries, dim, g), wg.Gaussian(h)
    wg.mean_shift(x, y[:2000], kernel=kernel)
    _, direct = timed(lambda: wg.mean_shift(x, y, kernel=kernel))
    exact = wg.mean_shift(x.double(), y.double(), kernel=kernel)
    results = []
    for count in counts:
        u = y[torch.randperm(n, generator=g)[:count]]
        average, setup = timed(partial(wg.NystromAverage, y, u, kernel))
        average.mean_shift(x)
        found, seconds = timed(partial(average.mean_shift, x))
        bound, _ = timed(partial(average.error_bound, x))
        safe, with_tolerance = timed(partial(average.mean_shift, x, tolerance=0.1 * h))
        error = (found.double() - exact).norm(dim=-1) / h
        safe_error = (safe.double() - exact).norm(dim=-1) / h
        row = {
            "n": n, "dim": dim, "h": h, "queries": queries, "landmarks": count, "setup_seconds": setup,
            "exact_seconds": direct, "seconds": seconds, "seconds_with_tolerance": with_tolerance,
            "error_median": error.median().item(), "error_max": error.max().item(),
            "bound_median": bound.double().median().item() / h,
            "broken_bounds": int((error * h > bound.double() + 1e-5 * h).sum()),
            "exact_rows": (bound > 0.1 * h).double().mean().item(),
            "error_max_with_tolerance": safe_error.max().item(),
        }  # fmt: skip
        results.append(row)
        print(row, flush=True)
    return results


def mixture(n: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    second = torch.rand(n, 1, generator=generator, dtype=torch.float64) < SHARES[1]
    mean, width = (torch.where(second, b, a) for a, b in (MEANS, WIDTH))
    return mean + width * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def log_truth(x: torch.Tensor) -> torch.Tensor:
    dim = x.shape[-1]
    parts = [
        math.log(share) - 0.5 * ((x - mean) / width).square().sum(-1)
        - dim * math.log(width * math.sqrt(2 * math.pi))
        for share, mean, width in zip(SHARES, MEANS, WIDTH, strict=True)
    ]  # fmt: skip
    return torch.stack(parts).logsumexp(0)


def quadrature(dim: int) -> tuple[torch.Tensor, float]:
    """Midpoints of a grid over all but 1e-6 of the mixture, and the volume of a cell."""
    low, high, count = -6.0, 6.5, {1: 1000, 2: 60}[dim]
    axis = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(*[axis] * dim).view(-1, dim), ((high - low) / count) ** dim


def densities(n: int, dim: int) -> list[dict]:
    """KDE at the best of six bandwidths, the debiased one at the best of the widest three, the peers at that of KDE."""
    g = torch.Generator().manual_seed(0)
    y, (x, cell) = mixture(n, dim, g), quadrature(dim)
    truth = log_truth(x).exp()

    def row(name: str, fit, h: float) -> dict:
        log_p, took = timed(lambda: fit(y, x, h))
        error = cell * (log_p.exp() - truth).square().sum().item()
        row = {"dim": dim, "n": n, "queries": len(x), "estimate": name, "h": h}
        row |= {"seconds": took, "relative_error": error / (cell * truth.square().sum().item())}
        print(row, flush=True)
        return row

    plain(y[:2000], x, 0.1)  # first calls load what they need
    widths = [0.04 * 1.4**k for k in range(6)]
    best = min((row("KDE", plain, h) for h in widths), key=itemgetter("relative_error"))
    wider = [row("KDE.debiased", debiased, h) for h in widths[3:]]
    peers = {
        "scipy": of_scipy,
        "scikit-learn": of_sklearn,
        "scikit-learn, rtol 1e-3": partial(of_sklearn, rtol=1e-3),  # prunes its tree
    }
    found = [row(name, fit, best["h"]) for name, fit in peers.items()]
    return [best, min(wider, key=itemgetter("relative_error")), *found]


def plain(y, x, h):
    return wg.KDE(y.float(), wg.Gaussian(h)).log_density(x.float()).double()


def debiased(y, x, h):
    return wg.KDE(y.float(), wg.Gaussian(h)).debiased().log_density(x.float()).double()


def of_scipy(y, x, h):
    return torch.as_tensor(scipy_kde(y.numpy(), h).logpdf(x.numpy().T))


def of_sklearn(y, x, h, rtol=0.0):
    kde = KernelDensity(bandwidth=h, rtol=rtol).fit(y.numpy())
    return torch.as_tensor(kde.score_samples(x.numpy()))


def table(fields: list[dict], averages: list[dict], kdes: list[dict]) -> str:
    lines = [
        "# Fast estimates\n",
        "Processor time of one thread.\n",
        "## Energy field\n",
        "Generated points N(0, I), data in two clusters; float32. Error: |V - exact| / |exact| over 0.5 % of the "
        "points. The time of the exact field, and of that of parts of the clouds, is that of these points times 200.\n",
        "| N = P, D | estimate | error | seconds | times as fast |",
        "|---|---|---|---|---|",
    ]
    for r in fields:
        exact = next(e for e in fields if e["dim"] == r["dim"])["seconds"]
        lines.append(
            f"| {r['n']:,}, {r['dim']} | {r['estimate']} | {100 * r['relative_error']:.2f} % "
            f"| {r['seconds']:.2f} | {exact / r['seconds']:.0f} |"
        )
    lines += [
        "\n## Averages through landmarks\n",
        "Mean shift of 1,000 new points of the law of P data in two clusters under `Gaussian(h)`, landmarks chosen at "
        "random; float32. Errors and bounds are lengths over h. With a tolerance of h/10, rows whose bound exceeds it "
        "are summed exactly. Exact: `mean_shift`. Set-up: once per cloud.\n",
        "| P, D, h | landmarks | error: median, largest | bound: median | rows beyond h/10 | set-up, s | ms: exact, "
        "landmarks, with tolerance | times as fast: landmarks, with tolerance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in averages:
        times = [1e3 * r[key] for key in ("exact_seconds", "seconds", "seconds_with_tolerance")]
        bound = f"{r['bound_median']:.1e}" if math.isfinite(r["bound_median"]) else "infinite"
        lines.append(
            f"| {r['n']:,}, {r['dim']}, {r['h']:g} | {r['landmarks']:,} "
            f"| {r['error_median']:.1e}, {r['error_max']:.1e} | {bound} "
            f"| {100 * r['exact_rows']:.0f} % | {r['setup_seconds']:.1f} "
            f"| {times[0]:.0f}, {times[1]:.1f}, {times[2]:.1f} "
            f"| {times[0] / times[1]:.1f}, {times[0] / times[2]:.1f} |"
        )
    lines += [
        "\n## Densities\n",
        "A mixture of two normal laws; error: integrated squared error over that of 0, by quadrature at the queries. "
        "`KDE` at the best of six bandwidths, .04 · 1.4^k, its peers, the same estimate, there too, and "
        "`KDE.debiased` at the best of the widest three. Seconds from samples to log densities.\n",
        "| samples, queries, D | estimate | h | error | seconds |",
        "|---|---|---|---|---|",
    ]
    for r in kdes:
        size = f"{r['n']:,}, {r['queries']:,}, {r['dim']}"
        error = f"{r['relative_error']:.1e}"
        lines.append(f"| {size} | {r['estimate']} | {r['h']:.3f} | {error} | {r['seconds']:.2f} |")
    return "\n".join(lines) + "\n"


PARTS = {
    "fields": lambda n: [row for dim in (2, 3, 8) for row in fields(n, dim, [8, 32, 128])],
    "landmarks": lambda n: [
        *landmarks(n, 2, 0.3, [100, 300]),
        *landmarks(n, 8, 1.0, [1000]),
        *landmarks(n, 16, 3.0, [300]),
        *landmarks(n // 10, 2, 0.1, [300, 1000]),
        *landmarks(n // 50, 8, 1.0, [300, 1000]),
    ],
    "densities": lambda n: [row for dim in (1, 2) for row in densities(n, dim)],
}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "fast_estimates", help="without suffix"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.out.with_suffix(".json")
    record = {"made_by": {}, **{part: [] for part in PARTS}}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    for part in args.parts:
        record[part] = PARTS[part](args.n)
        record["made_by"][part] = provenance()
        write_results(path, record)
    write_whole(args.out.with_suffix(".md"), table(*(record[part] for part in PARTS)))


if __name__ == "__main__":
    main()
