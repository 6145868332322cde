"""Which field clones real action chunks best? The actor alone, on one environment's data, for a grid of settings.

    python benchmarks/clone_chunks.py --env cube-single-play-singletask-task2-v0

Every field gets the same number of configurations (four): two learning rates times two bandwidths or temperatures, or
four learning rates where there is nothing else. Score: the held-out energy score of validation chunks (lower is better;
strictly proper, so it punishes a lost mode as well as blur). The winners are the settings of `train_runs.py`.
"""

import dataclasses
import time
from pathlib import Path

import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, rows_of, write_results

from wgflow_rl import data
from wgflow_rl.agents import presets
from wgflow_rl.agents.dfp import DFP
from wgflow_rl.data.replay import Replay

GRID = [
    (field, lr)
    for fields, rates in (
        (("drifting-relative:0.1", "drifting-relative:0.3"), (3e-4, 1e-3)),
        (("published:0.1", "published:0.02,0.05,0.2"), (3e-4, 1e-3)),
        (("likelihood:0.2", "likelihood:0.4"), (3e-4, 1e-3)),
        (("energy",), (3e-4, 6e-4, 1e-3, 2e-3)),
        (("likelihood:0.2+energy", "likelihood:0.4+energy"), (3e-4, 1e-3)),
    )
    for field in fields
    for lr in rates
]
HELD_OUT = 2048


def clone(
    train: Replay, validation: Replay, field: str, lr: float, *, env: str, steps: int, seed: int
) -> dict:
    """Train the actor on L_BC alone; its held-out measures and the CPU time of a step."""
    preset, _ = presets.preset("laptop", "dfp-ml-energy", env)
    cfg = dataclasses.replace(preset, field=field, improve_field=field, lr=lr)
    obs = train.rows["obs"][: train.offline]
    agent = DFP(
        cfg,
        obs_dim=obs.shape[1],
        action_dim=train.rows["actions"].shape[1],
        seed=seed,
        obs_mean=obs.mean(0),
        obs_std=obs.std(0).clamp_min(1e-3),
    )
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(agent.policy.parameters(), lr=lr, fused=True)
    start = time.process_time()
    for _ in range(steps):
        batch = train.sample(cfg.batch, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator)
        noise = agent.draw_noise(cfg.batch, generator)
        loss, _ = agent.actor_loss(
            batch._replace(obs=agent.normalise(batch.obs)), noise, online=False
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    cpu = time.process_time() - start
    generator.manual_seed(10_000)  # the same chunks and noise for every configuration
    batch = validation.sample(HELD_OUT, chunk=cfg.chunk, gamma=cfg.gamma, generator=generator)
    measures = agent.diagnose(batch, generator)
    return {k: round(float(v), 4) for k, v in measures.items()} | {
        "cpu_ms_per_step": round(1e3 * cpu / steps, 1)
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--env", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    ask = parser.parse_args()
    torch.set_num_threads(1)
    out = ask.out or RESULTS / f"clone_chunks-{ask.env}.json"
    done = rows_of(out)
    train, validation = (Replay(e, capacity=len(e)) for e in data.load(ask.env, rows=ask.rows))
    for field, lr in GRID:
        if any((row["field"], row["lr"]) == (field, lr) for row in done):
            continue
        done.append(
            {"field": field, "lr": lr}
            | clone(train, validation, field, lr, env=ask.env, steps=ask.steps, seed=ask.seed)
        )
        print(done[-1], flush=True)
        setup = vars(ask) | {"out": out.name}
        write_results(out, {"setup": setup, **provenance(), "rows": done})


if __name__ == "__main__":
    main()
