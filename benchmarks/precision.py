"""Does bfloat16 for candidates, scores and targets lose anything? Three seeds of the maze, f32 beside mixed.

    python benchmarks/precision.py train [--seeds 3]    # one process at a time; a second call goes on
    python benchmarks/precision.py same RUN [RUN ...]   # runs of train_runs.py: their last checkpoints, read both ways

Each writes its part of results/precision.json and the table precision.md. `train`: the laptop preset. `same`: equal
states, noise and weights, with passes without gradient in float32 and in bfloat16: which K of N candidates are the
best, how far candidates, their Q and the critic's target move, and the critic's loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _provenance import provenance

from wgflow_rl import data
from wgflow_rl.agents import networks, ops
from wgflow_rl.data.replay import Replay
from wgflow_rl.evaluate import load_agent
from wgflow_rl.experiments.results import bootstrap
from wgflow_rl.training.runlog import wilson
from wgflow_rl.training.table import read_rows

RESULTS = Path(__file__).parent / "results" / "precision.json"
ENV = "pointmaze-medium-navigate-singletask-task1-v0"
FLAGS = (*("--env", ENV, "--checkpoint-every", "100", "--route", "default", "--threads", "1"),)
ARMS = ("f32", "mixed")
LAST = 3  # evaluations that a run's success is the mean of
STATES = 2048  # held-out chunks on which a checkpoint is read both ways
MEASURES = {
    "top-K agreement": "top_k_agreement",
    "change of Q": "q_error",
    "change of target": "target_error",
    "change of candidates": "pool_error",
    "critic loss, mixed / f32": "critic_loss_ratio",
}


def train(folder: Path, *, precision: str, seed: int) -> None:
    """Train to the end, or go on, or do nothing where it is done."""
    begun = (folder / "config.json").exists()
    own = ("--precision", precision, "--seed", str(seed), "--run-dir", str(folder))
    how = ("--resume", str(folder)) if begun else (*FLAGS, *own)
    quiet = ("-W", "ignore::RuntimeWarning")  # that bfloat16 is slow here
    subprocess.run([sys.executable, *quiet, "-m", "wgflow_rl.train", *how], check=True)


def both_ways(folder: Path) -> dict[str, Any]:
    """The trained agent's update on held-out chunks, its passes without gradient in float32 and in bfloat16."""
    agent: Any
    agent, settings, step = load_agent(folder)
    cfg = settings.agent
    _, held_out = data.load(settings.env, rows=settings.schedule.data_rows, progress=False)
    generator = torch.Generator().manual_seed(0)
    replay = Replay(held_out, capacity=len(held_out))
    batch = replay.sample(STATES, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator)
    noise = agent.draw_noise(STATES, generator)
    obs, next_obs = agent.normalise(batch.obs), agent.normalise(batch.next_obs)
    values, pools, targets, losses = [], [], [], []
    with torch.no_grad():
        pool = agent.old_policy(obs, noise.candidates).clamp(-1, 1)
        for on in (False, True):
            with networks.reduced(on):
                values.append(agent.critic.mean(obs, pool))
                pools.append(agent.old_policy(obs, noise.candidates))
                best = agent.best(next_obs, agent.policy(next_obs, noise.target).clamp(-1, 1))
                future = agent.target_critic.mean(next_obs, best)[:, 0]
            targets.append(ops.td_target(batch.returns, batch.discount, future))
            losses.append(
                float(ops.critic_loss(agent.critic, batch, obs, targets[-1])[0])
            )  # Q in float32: it learns
    chosen = [value.topk(cfg.top_k).indices for value in values]
    same = (chosen[0][:, :, None] == chosen[1][:, None]).any(-1).float().mean()
    return {
        "env": settings.env,
        "seed": settings.seed,
        "step": step,
        "top_k_agreement": float(same),
        "q_error": float((values[1] - values[0]).abs().mean() / values[0].std(1).mean()),
        "pool_error": float((pools[1] - pools[0]).abs().mean() / pools[0].std()),
        "target_error": float((targets[1] - targets[0]).abs().mean() / targets[0].std()),
        "critic_loss_ratio": losses[1] / losses[0],
    }


def of_run(folder: Path) -> dict[str, Any]:
    _, rows = read_rows(folder / "eval.csv")
    _, log = read_rows(folder / "train.csv")
    return {
        "steps": [int(row["step"]) for row in rows],
        "success": [float(row["success"]) for row in rows],
        "episodes_each": json.loads((folder / "config.json").read_text())["settings"]["schedule"][
            "eval_episodes"
        ],
        "critic_loss": float(np.mean([float(row["critic_loss"]) for row in log[-5:]])),
    }


def table(found: dict[str, Any]) -> str:
    lines = []
    if "train" in found:
        lines += [
            f"`python benchmarks/precision.py train`: the maze, success of the last {LAST} evaluations of each run "
            "[95 % bootstrap over seeds] [95 % Wilson over episodes]; critic loss: the last five rows of train.csv.",
            "",
            "| precision | success | each seed | critic loss of each seed |",
            "|---|---|---|---|",
            *(line_of(arm, runs) for arm, runs in found["train"]["runs"].items()),
            "",
        ]
    if "same" in found:
        lines += [
            f"`python benchmarks/precision.py same`: {STATES} held-out chunks, trained networks, read both ways. "
            "Changes are mean absolute ones, over the standard deviation: of Q over a state's candidates, of targets "
            "over states, of candidates over all of them.",
            "",
            f"| run, step | {' | '.join(MEASURES)} |",
            "|---" * (1 + len(MEASURES)) + "|",
        ]
        for run in found["same"]["runs"]:
            cells = " | ".join(f"{run[key]:.4f}" for key in MEASURES.values())
            lines.append(f"| {run['env']}, seed {run['seed']}, {run['step']} | {cells} |")
    return "\n".join(lines) + "\n"


def line_of(arm: str, runs: list[dict[str, Any]]) -> str:
    last = np.array([np.mean(run["success"][-LAST:]) for run in runs])
    played = sum(run["episodes_each"] * LAST for run in runs)
    wins = round(sum(run["episodes_each"] * sum(run["success"][-LAST:]) for run in runs))
    (low, high), (bottom, top) = bootstrap(last), wilson(wins, played)
    seeds = " ".join(f"{value:.2f}" for value in last)
    losses = " ".join(f"{run['critic_loss']:.3f}" for run in runs)
    return f"| {arm} | {last.mean():.2f} [{low:.2f}, {high:.2f}] [{bottom:.2f}, {top:.2f}] | {seeds} | {losses} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    trains = parts.add_parser("train")
    trains.add_argument("--runs", type=Path, default=Path("runs/precision"))
    trains.add_argument("--seeds", type=int, default=3)
    parts.add_parser("same").add_argument("run", type=Path, nargs="+")
    ask = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if ask.part == "train":
        folders = {arm: [ask.runs / f"{arm}-s{seed}" for seed in range(ask.seeds)] for arm in ARMS}
        for seed in range(ask.seeds):
            for arm in ARMS:
                train(folders[arm][seed], precision=arm, seed=seed)
        runs = {arm: [of_run(folder) for folder in each] for arm, each in folders.items()}
        found["train"] = {"flags": FLAGS, "runs": runs, **provenance()}
    else:
        found["same"] = {"runs": [both_ways(folder) for folder in ask.run], **provenance()}
        found["same"]["argv"] = [Path(word).name for word in found["same"]["argv"]]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
