"""Fast estimates of large clouds: the sliced energy field beside the exact one, and score-debiased densities.

    python benchmarks/fast_estimates.py              # one thread; results/fast_estimates.{json,md}
    python benchmarks/fast_estimates.py --n 5000 --out /tmp/fast

Times are of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from _provenance import provenance
from _results import write_results
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

import wgflow as wg
from wgflow_rl.utils.files import write_whole

OUT = Path(__file__).parent / "results" / "fast_estimates"
MEANS, SHARES, WIDTH = (
    (-2.0, 1.5),
    (0.6, 0.4),
    (0.5, 1.0),
)  # of a mixture, the same in each coordinate


def timed(call):
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def fields(n: int, dim: int, directions: list[int]) -> list[dict]:
    """Generated points around the origin, data in two clusters beside it; the exact field at some of the points."""
    g = torch.Generator().manual_seed(0)
    x, pos = torch.randn(2, n, dim, generator=g)
    pos = 0.5 * pos
    pos[::3, 0] += 4.5
    pos[:, 0] -= 1.5
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


def densities(n: int, dim: int) -> list[dict]:
    """KDE at the best of eight bandwidths, its peers there, the debiased one at 1.6 times it."""
    g = torch.Generator().manual_seed(0)
    y, x = mixture(n, dim, g), mixture(n // 100, dim, g)
    truth = log_truth(x)

    def row(name: str, fit, h: float) -> dict:
        log_p, took = timed(lambda: fit(y, x, h))
        error = (log_p - truth).expm1().abs().mean().item()
        row = {"dim": dim, "n": n, "queries": len(x), "estimate": name, "h": h}
        return row | {"seconds": took, "relative_error": error}

    best = min(
        (row("KDE", plain, 0.03 * 1.4**k) for k in range(8)), key=itemgetter("relative_error")
    )
    wider = row("KDE.debiased", debiased, 1.6 * best["h"])
    peers = (("scipy", scipy_kde), ("scikit-learn", sklearn_kde))
    results = [best, wider, *(row(*peer, best["h"]) for peer in peers)]
    print(*results, sep="\n", flush=True)
    return results


def plain(y, x, h):
    return wg.KDE(y.float(), wg.Gaussian(h)).log_density(x.float()).double()


def debiased(y, x, h):
    return wg.KDE(y.float(), wg.Gaussian(h)).debiased().log_density(x.float()).double()


def scipy_kde(y, x, h):
    kde, dim = gaussian_kde(y.numpy().T), y.shape[1]
    # Its own bandwidth would follow the covariance of the samples.
    kde.covariance, kde.cho_cov = h * h * np.eye(dim), h * np.eye(dim)
    kde.log_det = 2 * dim * math.log(h * math.sqrt(2 * math.pi))
    return torch.as_tensor(kde.logpdf(x.numpy().T))


def sklearn_kde(y, x, h):
    return torch.as_tensor(KernelDensity(bandwidth=h).fit(y.numpy()).score_samples(x.numpy()))


def table(fields: list[dict], kdes: list[dict]) -> str:
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
        "\n## Densities\n",
        "A mixture of two normal laws; error: mean of |p/truth - 1| over draws of the truth. `KDE` at the best of "
        "eight bandwidths, the peers at the same, `KDE.debiased` at 1.6 times it. Seconds from samples to "
        "log densities.\n",
        "| samples, queries, D | estimate | h | error | seconds |",
        "|---|---|---|---|---|",
    ]
    for r in kdes:
        size = f"{r['n']:,}, {r['queries']:,}, {r['dim']}"
        error = f"{100 * r['relative_error']:.2f} %"
        lines.append(f"| {size} | {r['estimate']} | {r['h']:.3f} | {error} | {r['seconds']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=OUT, help="without suffix")
    args = parser.parse_args()
    torch.set_num_threads(1)
    velocities = [row for dim in (2, 3, 8) for row in fields(args.n, dim, [8, 32, 128])]
    kdes = densities(args.n // 5, 2)
    record = {**provenance(), "fields": velocities, "densities": kdes}
    write_results(args.out.with_suffix(".json"), record)
    write_whole(args.out.with_suffix(".md"), table(velocities, kdes))


if __name__ == "__main__":
    main()
