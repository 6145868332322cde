"""Does best-of-N acting hide what the top-K term does to the policy? Runs of a study, evaluated with few samples.

    python benchmarks/topk_samples.py arm-topk --samples 1 4 32

Plays the last checkpoint of every finished run with the best of N' chunks, on the same starts for every N' and variant
of a seed, and writes benchmarks/results/NAME-samples.json and .md. Trains nothing. Rows of earlier calls are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from _provenance import provenance
from _results import write_results
from train_runs import STUDIES, finished, jobs_of

from wgflow_rl.evaluate import load_agent, run_episodes
from wgflow_rl.experiments.results import summary

HERE = Path(__file__).parent


def play(run: Path, *, samples: int, episodes: int) -> dict:
    agent, settings, step = load_agent(run, act_samples=samples)
    result = run_episodes(agent, settings, episodes)
    return {
        "step": step,
        "samples": samples,
        "episodes": episodes,
        "success": float(result.success.mean()),
        "length": float(result.lengths.mean()),
    }


def table(rows: list[dict]) -> str:
    """Markdown: per variant and N', success with the standard error over seeds, and the steps of an episode."""
    lines = [
        "| variant | best of | seeds | success ± standard error | steps of an episode |",
        "|---|---|---|---|---|",
    ]
    frame = pd.DataFrame(rows)
    for (variant, samples), each in frame.groupby(["variant", "samples"], sort=False):
        found = summary(each.set_index("seed")["success"])
        error = found.std / found.seeds**0.5
        lines.append(
            f"| {variant} | {samples} | {found.seeds} | {found.mean:.2f} ± {error:.2f} | {each['length'].mean():.0f} |"
        )
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"))
    ask = parser.parse_args()
    torch.set_num_threads(1)
    out = HERE / "results" / f"{ask.study}-samples.json"
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    there = {(row["variant"], row["seed"], row["samples"]) for row in rows}
    for variant, jobs in finished(jobs_of(STUDIES[ask.study], ask.runs)).items():
        for seed, job in enumerate(jobs):
            for samples in ask.samples:
                if (variant, seed, samples) not in there:
                    row = play(job.folder, samples=samples, episodes=ask.episodes)
                    rows.append({"variant": variant, "seed": seed, **row})
                    print(rows[-1], flush=True)
    record = {"command": f"python benchmarks/topk_samples.py {ask.study}", **provenance()}
    write_results(out, record | {"rows": rows})
    out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
