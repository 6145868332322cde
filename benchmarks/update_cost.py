"""How the time of an update grows with width, depth, candidates, generated samples and batch; rows and a picture.

    python benchmarks/update_cost.py        # writes results/update_cost.json and .png; two minutes of one core

Each number is varied alone about 256 x 4, N = 16, G = 8, batch 128, a' ~ pi: processor time, one thread, fastest call.
Lines: the matrix products, as torch counts them, at one speed, that of all points together by least squares, plus one
constant for what no size changes: straight in depth, N, G and batch, square in width.
"""

import os
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _provenance import provenance
from _results import RESULTS, write_results
from _update import agent_of, random_batch
from matplotlib.figure import Figure

from wgflow_rl import profile
from wgflow_rl.agents import presets
from wgflow_rl.experiments.figures import COLOURS
from wgflow_rl.training.updates import update
from wgflow_rl.utils.pictures import plain, save

ENV = "cube-double-play-singletask-task2-v0"
BASE = replace(presets.paper("dfp-ml-energy", ENV), hidden=(256,) * 4, batch=128)
SWEEPS = {
    "width": {n: replace(BASE, hidden=(n,) * 4) for n in (64, 128, 256, 384, 512)},
    "depth": {n: replace(BASE, hidden=(256,) * n) for n in (1, 2, 4, 6, 8)},
    "candidates N": {n: replace(BASE, candidates=n) for n in (4, 8, 16, 32, 48)},
    "generated G": {n: replace(BASE, generated=n) for n in (2, 4, 8, 16, 32)},
    "batch": {n: replace(BASE, batch=n) for n in (32, 64, 128, 192, 256)},
}


def measure(cfg) -> dict[str, float]:
    """Seconds and floating-point operations of one online update."""
    generator = torch.Generator().manual_seed(0)
    agent = agent_of(cfg)
    batch, noise = random_batch(cfg, generator), agent.draw_noise(cfg.batch, generator)
    call = lambda: update(agent, batch, noise, online=True)  # noqa: E731
    return {"seconds": profile.seconds(call, at_least=1.5), "flops": profile.work(call).flops}


def fit(size: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(seconds of no size, seconds per unit of size), least squares of relative errors."""
    design = np.stack([np.ones(len(size)), size], 1) / seconds[:, None]
    constant, slope = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    return float(constant), float(slope)


def draw(rows: list[dict], constant: float, slope: float) -> None:
    figure = Figure(figsize=(9, 5.2), dpi=130, layout="constrained")
    *panels, unused = figure.subplots(2, 3).flat
    unused.remove()
    for axis, name in zip(panels, SWEEPS, strict=True):
        mine = [row for row in rows if row["varied"] == name]
        sizes = [row["size"] for row in mine]
        axis.plot(sizes, [1e3 * row["seconds"] for row in mine], "o", color=COLOURS[0])
        fitted = [1e3 * (constant + slope * row["flops"]) for row in mine]
        axis.plot(sizes, fitted, color=COLOURS[1])
        axis.set(xlabel=name, xlim=(0, None), ylim=(0, None))
        plain(axis)
    panels[0].set_ylabel("ms per update")
    panels[3].set_ylabel("ms per update")
    figure.suptitle(
        f"points: measured; lines: {constant * 1e3:.1f} ms + FLOPs at {1e-9 / slope:.0f} GFLOP/s",
        fontsize=10,
    )
    save(figure, RESULTS / "update_cost.png")


def main() -> None:
    torch.set_num_threads(1)
    # the base is in every sweep
    configs = dict.fromkeys(cfg for sweep in SWEEPS.values() for cfg in sweep.values())
    found = {cfg: measure(cfg) for cfg in configs}
    rows = [
        {"varied": name, "size": size, **found[cfg]}
        for name, sweep in SWEEPS.items()
        for size, cfg in sweep.items()
    ]
    constant, slope = fit(*(np.array([row[key] for row in rows]) for key in ("flops", "seconds")))
    record = {
        "constant_s": constant,
        "flops_per_s": 1 / slope,
        "rows": rows,
        "provenance": provenance(),
    }
    write_results(RESULTS / "update_cost.json", record)
    draw(rows, constant, slope)
    for row in rows:
        off = row["seconds"] / (constant + slope * row["flops"]) - 1
        print(
            f"{row['varied']:>13} {row['size']:>4}  {row['seconds'] * 1e3:8.1f} ms  {off:+.0%} off the line"
        )


if __name__ == "__main__":
    main()
