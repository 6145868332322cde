"""Train the same task several times: seeds, fields; one result file with every evaluation and its interval.

    python benchmarks/train_runs.py pointmaze           # `make train`, 5 seeds
    python benchmarks/train_runs.py arm                 # `make train-arm`, 3 seeds
    python benchmarks/train_runs.py fields-pointmaze    # every field offline, the rest equal, 3 seeds
    python benchmarks/train_runs.py fields-arm

Runs are subprocesses of `python -m wgflow_rl.train` on one thread each, `--jobs` at a time. A finished run is not
repeated, a stopped one is resumed; the default field's runs in the comparisons are those of `pointmaze` and `arm`, read
at the same steps. Results: benchmarks/results/NAME.json, .md and .png.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _provenance import provenance

from wgflow_rl.curve import draw_curve

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"
# Bandwidths and temperatures: the best of benchmarks/clone_chunks.py on the maze (four settings a field). The learning
# rate is the preset's: no field gained more than 0.5 % in held-out score from another, and the critic shares it.
FIELDS = {
    "energy": "energy",
    "likelihood+energy": "likelihood:0.2+energy",
    "likelihood": "likelihood:0.2",
    "released": "released:0.1",
    "eq3": "eq3:0.3",
}
DEFAULT = "likelihood+energy"


@dataclass(frozen=True)
class Study:
    """Some variants of the command line on one environment."""

    env: str
    seeds: int
    variants: dict[str, list[str]]  # name -> flags
    borrowed: str = ""  # the study whose runs stand for the default field


def compare(env: str, steps: int, every: int, borrowed: str) -> Study:
    flags = ["--offline-steps", str(steps), "--online-steps", "0", "--eval-every", str(every)]
    variants = {name: ["--field", field, "--improve-field", field, *flags] for name, field in FIELDS.items()}
    return Study(env, 3, variants, borrowed)


STUDIES = {
    "pointmaze": Study(MAZE, 5, {DEFAULT: []}),
    "arm": Study(ARM, 3, {DEFAULT: []}),
    "fields-pointmaze": compare(MAZE, 3000, 1000, "pointmaze"),
    "fields-arm": compare(ARM, 4000, 2000, "arm"),
}


def train(folder: Path, env: str, flags: list[str], seed: int) -> None:
    """One run to its end, in its own process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "wgflow_rl.train"]
    if (folder / "config.json").exists():
        if (folder / "done").exists():
            return
        command += ["--resume", str(folder)]
    else:
        command += ["--env", env, "--seed", str(seed), "--threads", "1", "--run-dir", str(folder), *flags]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
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
    """Markdown, one row a variant: success of the last three evaluations over seeds, and what came before."""
    lines = [
        "| variant | success, mean of the last 3 evaluations [95 % bootstrap over seeds] | each seed | first | "
        "last offline | steps of an episode: last offline, end | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, seeds in runs.items():
        last = np.array([np.mean([row["success"] for row in rows[-3:]]) for rows in seeds])
        low, high = bootstrap(last)
        offline = [[row for row in rows if row["phase"] == "offline"][-1] for rows in seeds]
        mean = lambda column, rows: np.mean([row[column] for row in rows])  # noqa: E731
        ends = [rows[-1] for rows in seeds]
        lines.append(
            f"| {variant} | {last.mean():.2f} [{low:.2f}, {high:.2f}] | {' '.join(f'{v:.2f}' for v in last)} | "
            f"{mean('success', [rows[0] for rows in seeds]):.2f} | {mean('success', offline):.2f} | "
            f"{mean('length', offline):.0f}, {mean('length', ends):.0f} | {mean('wall_s', ends) / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Success and episode length against steps: one line a variant, its band from the worst to the best seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("success", "length"), ("success rate", "episode length"), strict=True
    ):
        for variant, seeds in runs.items():
            steps = [row["step"] for row in seeds[0]]
            values = np.array([[row[column] for row in rows] for rows in seeds])
            (line,) = axes.plot(steps, values.mean(0), marker="o", markersize=4, label=variant)
            axes.fill_between(
                steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0
            )
        axes.set(xlabel="offline updates", ylabel=label)
        axes.set_ylim(-0.03 if column == "success" else 0, 1.03 if column == "success" else None)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    ask = parser.parse_args()
    study = STUDIES[ask.study]

    def folder(variant: str, seed: int) -> Path:
        place = study.borrowed if study.borrowed and variant == DEFAULT else ask.study
        return ask.runs / place / f"{variant}-s{seed}"

    with ThreadPoolExecutor(ask.jobs) as pool:
        jobs = [
            pool.submit(train, folder(variant, seed), study.env, flags, seed)
            for variant, flags in study.variants.items()
            for seed in range(study.seeds)
            if not (study.borrowed and variant == DEFAULT)
        ]
        for job in jobs:
            job.result()

    runs, settings, made_by = {}, {}, {}
    for variant in study.variants:
        runs[variant] = [read(folder(variant, seed)) for seed in range(study.seeds)]
        configs = [
            json.loads((folder(variant, seed) / "config.json").read_text()) for seed in range(study.seeds)
        ]
        settings[variant] = configs[0]["settings"]
        made_by[variant] = [
            {key: config[key] for key in ("commit", "versions", "started")} for config in configs
        ]
    if study.borrowed:
        compared = {row["step"] for name, seeds in runs.items() if name != DEFAULT for row in seeds[0]}
        runs[DEFAULT] = [[row for row in rows if row["step"] in compared] for rows in runs[DEFAULT]]
    out = Path(__file__).parent / "results" / ask.study
    record = {
        "command": f"python benchmarks/train_runs.py {ask.study} --jobs {ask.jobs}",
        "env": study.env,
        **provenance(),
        "settings": settings,
        "made_by": made_by,
        "runs": runs,
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(runs))
    if len(runs) == 1:
        draw_curve(
            *next(iter(runs.values())),
            path=out.with_suffix(".png"),
            title=f"{study.env}, {study.seeds} seeds",
        )
    else:
        draw(runs, out.with_suffix(".png"), f"{study.env}: the fields, {study.seeds} seeds each")
    print(table(runs))


if __name__ == "__main__":
    main()
