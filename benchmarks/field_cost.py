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

import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results
from matplotlib.figure import Figure
from update_cost import fit

import wgflow as wg
from wgflow_rl import profile
from wgflow_rl.agents import fields
from wgflow_rl.experiments.figures import COLOURS
from wgflow_rl.utils.pictures import plain, save

POINTS, DIMENSIONS = (512, 1024, 2048, 4096, 8192), (2, 8, 16, 32, 64)
AT_D, AT_N = 8, 4096  # where the other one stands
VARIED = {"points N": (POINTS, 2), "dimension D": (DIMENSIONS, 1)}  # and the power that time has
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
    rows, lines = grown(measured())
    write_results(
        RESULTS / "field_cost.json", {"lines": lines, "rows": rows, "provenance": provenance()}
    )
    draw(rows, lines)


def grown(seconds: dict[tuple, float]) -> tuple[list[dict], list[dict]]:
    """Rows of times, and the line through those of each field in pairs or in the dimension."""
    rows, lines = [], []
    for name in FIELDS:
        for varied, (sizes, power) in VARIED.items():
            times = [
                seconds[name, n, AT_D] if power == 2 else seconds[name, AT_N, n] for n in sizes
            ]
            about = {"field": name, "varied": varied}
            rows += [about | {"size": n, "seconds": t} for n, t in zip(sizes, times, strict=True)]
            units = np.array(sizes, float) ** power
            constant, slope = fit(units, np.array(times))
            off = float(np.abs(times / (constant + slope * units) - 1).max())
            lines.append(about | {"constant_s": constant, "slope_s": slope, "furthest_off": off})
            line = f"{constant * 1e3:.2f} ms + {slope * 1e9:.2f} ns per unit"
            print(f"{name}, {varied}: {line}; {off:.0%} off at most")
    return rows, lines


def draw(rows: list[dict], lines: list[dict]) -> None:
    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    panels = dict(zip(VARIED, figure.subplots(1, 2), strict=True))
    for line in lines:
        name, varied = line["field"], line["varied"]
        sizes, power = VARIED[varied]
        axes, colour = panels[varied], COLOURS[list(FIELDS).index(name)]
        times = [r["seconds"] for r in rows if (r["field"], r["varied"]) == (name, varied)]
        fitted = line["constant_s"] + line["slope_s"] * np.array(sizes, float) ** power
        axes.plot(sizes, 1e3 * np.array(times), "o", color=colour, label=name)
        axes.plot(sizes, 1e3 * fitted, color=colour)
        axes.set(xlabel=varied, ylabel="ms per field")
    points, dimensions = panels.values()
    points.set(xscale="log", yscale="log", title=f"D = {AT_D}; lines: constant + pairs")
    points.set_xticks(POINTS, [str(n) for n in POINTS], minor=False)
    points.set_xticks([], minor=True)
    dimensions.set(
        xlim=(0, None), ylim=(0, None), title=f"N = {AT_N}; lines: constant + slope in D"
    )
    points.legend(frameon=False, fontsize=8)
    for axes in panels.values():
        plain(axes)
    save(figure, RESULTS / "field_cost.png")


if __name__ == "__main__":
    main()
