"""Train the same task several times: seeds, fields, settings; one result file with every evaluation and its interval.

    python benchmarks/train_runs.py pointmaze                       # the default command, 5 seeds
    python benchmarks/train_runs.py fields-pointmaze                # every field, the rest equal, 3 seeds
    python benchmarks/train_runs.py arm                             # `make train-arm`, 3 seeds
    python benchmarks/train_runs.py fields-arm

Runs are subprocesses of `python -m wgflow_rl.train` on one thread each, `--jobs` at a time. A finished run is not
repeated, a stopped one is resumed. Results: benchmarks/results/NAME.json, .md and .png.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from _provenance import provenance

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"
# Each field with the settings that won benchmarks/clone_chunks.py on that environment (same search for all).
FIELDS = {
    MAZE: {
        "energy": ("energy", 1e-3),
        "likelihood+energy": ("likelihood:0.2+energy", 1e-3),
        "likelihood": ("likelihood:0.2", 1e-3),
        "released": ("released:0.1", 1e-3),
        "eq3": ("eq3:0.3", 1e-3),
    },
    ARM: {},
}
SHORT_MAZE = ["--offline-steps", "3000", "--online-steps", "0", "--eval-every", "1000"]
SHORT_ARM = [
    "--offline-steps",
    "5000",
    "--online-steps",
    "0",
    "--eval-every",
    "2500",
    "--eval-episodes",
    "50",
]


def studies() -> dict[str, tuple[str, dict[str, list[str]], int]]:
    """Name -> (environment, variant -> flags, seeds)."""
    compared = {
        env: {
            name: ["--field", field, "--improve-field", field, "--lr", str(lr)]
            for name, (field, lr) in settings.items()
        }
        for env, settings in FIELDS.items()
    }
    return {
        "pointmaze": (MAZE, {"dfp": []}, 5),
        "arm": (ARM, {"dfp": []}, 3),
        "fields-pointmaze": (MAZE, {k: v + SHORT_MAZE for k, v in compared[MAZE].items()}, 3),
        "fields-arm": (ARM, {k: v + SHORT_ARM for k, v in compared[ARM].items()}, 3),
    }


def train(folder: Path, env: str, flags: list[str], seed: int) -> None:
    """One run to its end, in its own process."""
    command = [sys.executable, "-m", "wgflow_rl.train"]
    if (folder / "config.json").exists():
        if (folder / "done").exists():
            return
        command += ["--resume", str(folder)]
    else:
        command += ["--env", env, "--seed", str(seed), "--threads", "1", "--run-dir", str(folder), *flags]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (folder / "done").touch()


def read(folder: Path) -> list[dict]:
    """Rows of eval.csv as numbers."""
    with (folder / "eval.csv").open() as file:
        return [{k: v if k == "phase" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over seeds."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def table(runs: dict[str, list[list[dict]]]) -> str:
    """Markdown: per variant the mean success of the last three evaluations over seeds, and the best seed's opposite."""
    lines = [
        "| variant | success, last 3 evaluations: mean [95 % bootstrap over seeds] | each seed | first evaluation | "
        "last offline | length at the end | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, seeds in runs.items():
        last = np.array([np.mean([row["success"] for row in rows[-3:]]) for rows in seeds])
        low, high = bootstrap(last)
        first = np.mean([rows[0]["success"] for rows in seeds])
        offline = np.mean([[r for r in rows if r["phase"] == "offline"][-1]["success"] for rows in seeds])
        length = np.mean([rows[-1]["length"] for rows in seeds])
        minutes = np.mean([rows[-1]["wall_s"] for rows in seeds]) / 60
        each = " ".join(f"{v:.2f}" for v in last)
        lines.append(
            f"| {variant} | {last.mean():.2f} [{low:.2f}, {high:.2f}] | {each} | {first:.2f} | {offline:.2f} | "
            f"{length:.0f} | {minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Success and episode length against steps: one line a variant, the band from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for variant, seeds in runs.items():
        steps = [row["step"] for row in seeds[0]]
        for axis, column in zip(axes, ("success", "length"), strict=True):
            values = np.array([[row[column] for row in rows[: len(steps)]] for rows in seeds])
            (line,) = axis.plot(
                steps, values.mean(0), marker="o", ms=3, label=f"{variant} ({len(seeds)} seeds)"
            )
            axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)
    ends = [row["step"] for row in next(iter(runs.values()))[0] if row["phase"] == "offline"]
    for axis, label in zip(axes, ("success rate", "episode length"), strict=True):
        axis.axvspan(0, ends[-1], color="0.93", zorder=0)
        axis.set(
            xlabel="steps (grey: offline)",
            ylabel=label,
            xlim=(0, None),
            ylim=(0, 1.03) if label[0] == "s" else (0, None),
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(studies()))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    ask = parser.parse_args()
    env, variants, count = studies()[ask.study]
    folders = {
        v: [ask.runs / ask.study / f"{v.replace(' ', '-')}-s{s}" for s in range(count)] for v in variants
    }
    (ask.runs / ask.study).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with ThreadPoolExecutor(ask.jobs) as pool:
        jobs = [
            pool.submit(train, folders[v][seed], env, flags, seed)
            for v, flags in variants.items()
            for seed in range(count)
        ]
        for job in jobs:
            job.result()
    runs = {variant: [read(folder) for folder in folders[variant]] for variant in variants}
    settings = {v: json.loads((folders[v][0] / "config.json").read_text())["settings"] for v in variants}
    out = Path(__file__).parent / "results" / ask.study
    record = {
        "command": f"python benchmarks/train_runs.py {ask.study} --jobs {ask.jobs}",
        "env": env,
        "flags": variants,
        "wall_minutes": round((time.monotonic() - start) / 60, 1),
        **provenance(),
        "settings": settings,
        "runs": runs,
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(runs))
    draw(runs, out.with_suffix(".png"), env)
    print(table(runs))


if __name__ == "__main__":
    main()
