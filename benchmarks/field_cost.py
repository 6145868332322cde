"""How the time of a field grows with the number of points and their dimension; rows and a picture.

    python benchmarks/field_cost.py            # writes results/field_cost.json and .png; three minutes of one core
    python benchmarks/field_cost.py --groups   # writes results/field_groups.json; ten seconds

N points against N positives and N of their own, standard normal, float32, the default backend: processor time, one
thread, fastest call of three rounds over all sizes, for what disturbs a machine lasts. Lines: pairs N^2 at one speed
and a constant, a constant and a slope in D; least squares of relative errors. With `--groups`: the fields of the
command line on the groups of a policy's update, 8 generated points and one positive in 25 dimensions, 128 times.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib as mpl
import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results
from update_cost import fit

import wgflow as wg
from wgflow_rl import profile
from wgflow_rl.agents import fields

mpl.use("Agg")
import matplotlib.pyplot as plt

POINTS, DIMENSIONS = (512, 1024, 2048, 4096, 8192), (2, 8, 16, 32, 64)
AT_D, AT_N = 8, 4096  # where the other one stands
ROUNDS = 3
FIELDS = {
    "drifting_field, Gaussian": lambda x, y: wg.drifting_field(
        x, y, x, kernel=wg.Gaussian(x.shape[-1] ** 0.5)
    ),
    "drifting_field, Laplace": lambda x, y: wg.drifting_field(
        x, y, x, kernel=wg.Laplace(x.shape[-1] ** 0.5)
    ),
    "energy_field": wg.energy_field,
}


def time_of(name: str, n: int, d: int) -> float:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator) for _ in range(2))
    FIELDS[name](x, y)
    return profile.seconds(lambda: FIELDS[name](x, y), at_least=0.5)


def measured() -> dict[tuple[str, int, int], float]:
    """Seconds by field, N and D."""
    sizes = dict.fromkeys([(n, AT_D) for n in POINTS] + [(AT_N, d) for d in DIMENSIONS])
    rounds = [
        {(name, *size): time_of(name, *size) for name in FIELDS for size in sizes}
        for _ in range(ROUNDS)
    ]
    return {key: min(found[key] for found in rounds) for key in rounds[0]}


def measure_groups() -> None:
    """Milliseconds per field at [128, 8 + 1, 25], the fastest of three rounds."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(128, n, 25, generator=generator) for n in (8, 1))
    milliseconds = {}
    for name in fields.FIELDS:
        field = fields.parse(name)
        field(x, y)
        found = [profile.seconds(lambda f=field: f(x, y), at_least=0.3) for _ in range(ROUNDS)]
        milliseconds[name] = 1e3 * min(found)
        print(f"{name}: {milliseconds[name]:.2f} ms")
    found = {"shape": [128, 8, 1, 25], "milliseconds": milliseconds, "provenance": provenance()}
    write_results(RESULTS / "field_groups.json", found)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--groups", action="store_true")
    ask = parser.parse_args()
    torch.set_num_threads(1)
    if ask.groups:
        measure_groups()
        return
    seconds = measured()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows, lines = [], []
    for colour, name in enumerate(FIELDS):
        for axis, varied, sizes, power in (
            (axes[0], "points N", POINTS, 2),
            (axes[1], "dimension D", DIMENSIONS, 1),
        ):
            times = [
                seconds[name, n, AT_D] if power == 2 else seconds[name, AT_N, n] for n in sizes
            ]
            rows += [
                {"field": name, "varied": varied, "size": n, "seconds": t}
                for n, t in zip(sizes, times, strict=True)
            ]
            grown, t = np.array(sizes, float) ** power, np.array(times)
            constant, slope = fit(grown, t)
            off = float(np.abs(t / (constant + slope * grown) - 1).max())
            lines.append(
                {
                    "field": name,
                    "varied": varied,
                    "constant_s": constant,
                    "slope_s": slope,
                    "furthest_off": off,
                }
            )
            axis.plot(sizes, 1e3 * t, "o", color=f"C{colour}", label=name)
            axis.plot(sizes, 1e3 * (constant + slope * grown), color=f"C{colour}")
            axis.set(xlabel=varied, ylabel="ms a field")
            print(
                f"{name}, {varied}: {constant * 1e3:.2f} ms + {slope * 1e9:.2f} ns a unit; {off:.0%} off at most"
            )
    axes[0].set(xscale="log", yscale="log")
    axes[0].set_xticks(POINTS, [str(n) for n in POINTS], minor=False)
    axes[0].set_xticks([], minor=True)
    axes[0].set(title=f"D = {AT_D}; lines: constant + pairs")
    axes[1].set(xlim=(0, None), ylim=(0, None), title=f"N = {AT_N}; lines: constant + slope in D")
    axes[0].legend(frameon=False, fontsize=8)
    found = {"lines": lines, "rows": rows, "provenance": provenance()}
    figure.savefig(RESULTS / "field_cost.png", dpi=100)
    write_results(RESULTS / "field_cost.json", found)


if __name__ == "__main__":
    main()
