"""One update of DFP on a GPU: called one by one, as one CUDA graph, in TF32, and for 1 to 5 stacked seeds.

    python benchmarks/update_gpu.py [--preset paper] [--updates 200]

Milliseconds between two events on the device, the median of rounds in which the variants take turns. The table is
printed, the rows go to results/update_gpu.json. Without CUDA: one line, and exit code 2; 1 if a variant cannot be made.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from _provenance import provenance
from _update import ACTION, OBS, random_batch

from wgflow_rl.agents import methods
from wgflow_rl.training import routing
from wgflow_rl.training.graphs import Captured
from wgflow_rl.training.stacked import Stacked
from wgflow_rl.training.updates import Plain, Update, Work, together

RESULTS = Path(__file__).parent / "results" / "update_gpu.json"
ENV = "cube-double-play-singletask-task2-v0"
ROUNDS, SEEDS = 5, 5
WARM = 6  # updates before the first measured one: the graph is recorded after three


def update_and_work(cfg, seeds: int, *, graph: bool, device: str) -> tuple[Update, Work]:
    """The update of so many seeds, and a batch and noise for it that are on the device already."""
    agents = [
        methods.build(cfg, obs_dim=OBS, action_dim=ACTION, seed=s, device=device)
        for s in range(seeds)
    ]
    draw, works = torch.Generator(device).manual_seed(0), []
    for seed, agent in enumerate(agents):
        batch = random_batch(cfg, torch.Generator().manual_seed(seed))
        batch = type(batch)(*(t.to(device) for t in batch))
        works.append(Work(batch, agent.draw_noise(cfg.batch, draw), online=True))
    update: Update = Plain(agents[0]) if seeds == 1 else Stacked(agents)
    return Captured(update) if graph else update, works[0] if seeds == 1 else together(works)


def milliseconds(update: Update, work: Work, updates: int) -> float:
    """Of one update, from the first launch to the last result."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(updates):
        outcome = update(work.batch, work.noise, online=work.online)
    end.record()
    end.synchronize()
    assert outcome.finite.all()
    return start.elapsed_time(end) / updates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="paper", choices=methods.PRESETS)
    parser.add_argument("--updates", type=int, default=200)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch has no CUDA device here; this benchmark times a GPU", file=sys.stderr)
        raise SystemExit(2)
    cfg, _ = methods.preset(args.preset, "dfp", ENV)
    variants = {
        ("plain", 1): ("f32", False),
        ("graph", 1): ("f32", True),
        ("graph, tf32", 1): ("tf32", True),
        **{("stacked graph", seeds): ("f32", True) for seeds in range(2, SEEDS + 1)},
    }
    ready = {}
    for (name, seeds), (precision, graph) in variants.items():
        try:
            made = update_and_work(cfg, seeds, graph=graph, device="cuda")
            with routing.applied("default", precision=precision, device="cuda"):
                milliseconds(*made, WARM)  # a graph keeps the precision that it was recorded in
        except RuntimeError as error:  # no reason not to time the others
            print(f"error: {name}, {seeds} seed(s): {error}", file=sys.stderr)
        else:
            ready[name, seeds] = made
    times = {key: [] for key in ready}
    for _ in range(ROUNDS):
        for key, made in ready.items():
            with routing.applied("default", precision=variants[key][0], device="cuda"):
                times[key].append(milliseconds(*made, args.updates))
    one = statistics.median(times.get(("graph", 1), [math.nan]))
    rows = []
    print(
        f"DFP, preset {args.preset}, {torch.cuda.get_device_name()}; milliseconds an update, median [least, most]"
    )
    for (name, seeds), took in times.items():
        middle = statistics.median(took)
        rows.append({"variant": name, "seeds": seeds, "milliseconds": took})
        print(
            f"{name:<16}{seeds} seed(s) {middle:8.3f} [{min(took):.3f}, {max(took):.3f}]  {middle / one:5.2f} x graph"
        )
    told = provenance() | {"gpu": torch.cuda.get_device_name(), "preset": args.preset}
    RESULTS.write_text(json.dumps({"provenance": told, "rows": rows}, indent=1) + "\n")
    if len(ready) < len(variants):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
