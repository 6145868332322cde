"""Finished runs evaluated with other rules of acting: the number of samples N' and the temperature of the choice.

    python benchmarks/best_of.py RUN [RUN ...] --samples 4 32 --temperatures 0 1 2 --name arm
    python benchmarks/best_of.py --study strength-arm --samples 1 --temperatures 0 --name strength-arm

A policy draws N' chunks and executes one, drawn from softmax(Q / T); at T = 0 the best. Every rule plays the same start
states, which are not those of evaluations during training. Writes benchmarks/results/best_of-NAME.json and .md, row by
row; rows of earlier calls are kept. `--study` takes the finished runs of a study of train_runs.py, under the names of
its variants. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import train_runs
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, rows_of, write_results

from wgflow_rl.training.runlog import wilson
from wgflow_rl.training.trained import load_agent, run_episodes

KEY = ("run", "samples", "temperature", "episodes")


def play(run: Path, *, variant: str, samples: int, temperature: float, episodes: int) -> dict:
    """Play with N' = samples and T = temperature; returns a row of results. The variant defaults to the method."""
    agent, settings, step = load_agent(run, act_samples=samples)
    cfg: Any = agent.cfg
    agent.cfg = dataclasses.replace(cfg, act_temperature=temperature)
    agent.cfg.check()
    result = run_episodes(agent, settings, episodes)
    low, high = wilson(int(result.success.sum()), episodes)
    return {
        "method": variant or settings.method,
        "env": settings.env,
        "seed": settings.seed,
        "run": run.name,
        "step": step,
        "samples": samples,
        "temperature": temperature,
        "episodes": episodes,
        "success": float(result.success.mean()),
        "low": round(low, 3),
        "high": round(high, 3),
        "length": float(result.lengths.mean()),
    }


def runs_of(study: str, folder: Path) -> dict[Path, str]:
    """The finished runs of a study, each with the name of its variant, seed by seed."""
    found = train_runs.finished(train_runs.jobs_of(train_runs.STUDIES[study], folder))
    named = [[(job.folder, name) for job in each] for name, each in found.items()]
    return dict(each for seed in itertools.zip_longest(*named) for each in seed if each)


def table(rows: list[dict]) -> str:
    """Markdown, one row per method, N' and T: means over the seeds; the interval if there is one seed."""
    lines = []
    by = ["method", "env", "step", "samples", "temperature"]
    for (method, env, step, samples, temperature), each in pd.DataFrame(rows).groupby(by):
        success = f"{each['success'].mean():.2f}"
        if len(each) == 1:
            success += f" [{each['low'].item():.2f}, {each['high'].item():.2f}]"
        seeds = f"{len(each)}, {each['episodes'].iloc[0]}"
        rule = [method, env, f"{step:,}", str(samples), f"{temperature:g}", seeds]
        lines.append([*rule, success, f"{each['length'].mean():.0f}"])
    columns = "N' | T | seeds, episodes | success [95 % Wilson, one seed] | steps of an episode"
    return "\n".join(markdown(f"method | task | steps | {columns}", lines)) + "\n"


@torch.no_grad()
def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--study", choices=list(train_runs.STUDIES))
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/sweep"), help="of the study's runs"
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--name", required=True, help="of the result files: best_of-NAME")
    ask = parser.parse_args()
    runs = dict.fromkeys(ask.runs, "") | (runs_of(ask.study, ask.folder) if ask.study else {})
    if not runs:
        parser.error("no run; wanted folders of runs, or --study with finished runs in --folder")
    torch.set_num_threads(1)
    out = RESULTS / f"best_of-{ask.name}.json"
    rows = rows_of(out)
    there = {tuple(row[name] for name in KEY) for row in rows}
    for run, samples, temperature in itertools.product(runs, ask.samples, ask.temperatures):
        if (run.name, samples, temperature, ask.episodes) in there:
            continue
        rule = {"samples": samples, "temperature": temperature, "episodes": ask.episodes}
        rows.append(play(run, variant=runs[run], **rule))
        print(rows[-1], flush=True)
        write_results(out, {**provenance(), "rows": rows})
    out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
