"""Five stacked seeds against five single updates on a CPU, in processor time, taking turns.

python benchmarks/stacked_cpu.py                   # both sizes, half a minute of processor time
"""

import statistics
import time

import torch
from _update import ACTION, OBS, random_batch

from wgflow_rl.agents import methods
from wgflow_rl.training.stacked import Stacked
from wgflow_rl.training.updates import Plain, Work, together

ENV = "cube-double-play-singletask-task2-v0"
SEEDS, ROUNDS = 5, 3


def seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def ratio(preset: str, updates: int) -> tuple[float, float, list[float]]:
    """Median seconds of five single updates and of one stacked, and the ratio of each round."""
    cfg, _ = methods.preset(preset, "dfp-ml-energy", ENV)

    def agents():
        return [methods.build(cfg, obs_dim=OBS, action_dim=ACTION, seed=s) for s in range(SEEDS)]

    generator, alone, stack = torch.Generator().manual_seed(0), agents(), Stacked(agents())
    works = [
        Work(random_batch(cfg, generator), agent.draw_noise(cfg.batch, generator), online=True)
        for agent in alone
    ]
    singles, work = [Plain(agent) for agent in alone], together(works)

    def one_by_one() -> None:
        for _ in range(updates):
            for update, own in zip(singles, works, strict=True):
                update(own.batch, own.noise, online=True)

    def at_once() -> None:
        for _ in range(updates):
            stack(work.batch, work.noise, online=True)

    rounds = [
        (seconds(one_by_one) / updates, seconds(at_once) / updates) for _ in range(ROUNDS + 1)
    ][1:]
    return *(statistics.median(column) for column in zip(*rounds, strict=True)), [
        b / a for a, b in rounds
    ]


def main() -> None:
    torch.set_num_threads(1)
    for preset, updates in (("laptop", 5), ("paper", 1)):
        five, stacked, ratios = ratio(preset, updates)
        print(
            f"{preset}: five single updates {five * 1e3:.1f} ms, one of five stacked seeds {stacked * 1e3:.1f} ms, "
            f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
