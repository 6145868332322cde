"""Cost of an online step and of a decision for the methods of Table 9, in its layout.

    python benchmarks/table9.py                        # this machine's CPU, one thread; some minutes
    python benchmarks/table9.py --device cuda          # updates on a GPU, decisions on the CPU

An online training step is one environment step, its share of a decision (one per chunk) and one
update with the settings of the `paper` preset on cube-double-task2; a decision is one call of the
policy for one observation, best of N included, on the CPU. Data are random numbers: the cost does
not depend on them. Times are medians of wall-clock time, the methods taking turns, so that a busy
machine slows all of them. The printed row of the paper was measured on an RTX 3090 and a Xeon Gold
6342 and averaged over 12 tasks: compare ratios within a row, not milliseconds between rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results
from _update import OBS, agent_of, random_batch
from paper_numbers import table

from wgflow_rl import envs
from wgflow_rl.agents import presets
from wgflow_rl.experiments import tables
from wgflow_rl.training.updates import update

ENV = "cube-double-play-singletask-task2-v0"
METHODS = {
    "BFN": "bfn",
    "QC-BFN": "qc-bfn",
    "FQL": "fql",
    "QC-FQL": "qc-fql",
    "MVP": "mvp",
    "MVP w/ top-K": "mvp-topk",
    "DFP w/o top-K": "dfp-no-topk",
    "DFP": "dfp",
}


class Method:
    """One method at the paper's size, its batch and noise, and what was timed."""

    def __init__(self, name: str, device: str):
        self.cfg, _ = presets.preset("paper", name, ENV)
        generator = torch.Generator().manual_seed(0)
        self.agent, self.actor = agent_of(self.cfg, device), agent_of(self.cfg)
        batch = random_batch(self.cfg, generator)
        self.batch = batch._replace(**{k: t.to(device) for k, t in batch._asdict().items()})
        self.noise = self.agent.draw_noise(self.cfg.batch, generator)
        self.obs, self.generator = torch.randn(1, OBS, generator=generator), generator
        self.updates: list[float] = []
        self.decisions: list[float] = []

    def update(self) -> None:
        log = update(self.agent, self.batch, self.noise, online=True)
        float(log["actor_loss"])  # waits for the device

    def decide(self) -> None:
        self.actor.act(self.obs, self.generator)


def seconds(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def environment_step(steps: int = 2000) -> float:
    """Seconds of one step of the environment under random actions, resets included."""
    env, space = envs.make(ENV), torch.Generator().manual_seed(0)
    env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(steps):
        action = torch.rand(env.action_space.shape, generator=space).numpy() * 2 - 1
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - start) / steps


def measure(device: str, rounds: int) -> list[dict]:
    timed = {label: Method(name, device) for label, name in METHODS.items()}
    for each in timed.values():
        each.update(), each.decide()
    for _ in range(rounds):
        for each in timed.values():
            each.updates.append(seconds(each.update, 1))
            each.decisions.append(seconds(each.decide, 20))
    step = environment_step()
    rows = []
    for label, each in timed.items():
        update_s, decision_s = map(statistics.median, (each.updates, each.decisions))
        online = update_s + step + decision_s / each.cfg.chunk
        parts = {"update": update_s, "decision": decision_s, "environment": step, "online": online}
        rows.append({"method": label, **{f"{k}_ms": round(1e3 * v, 3) for k, v in parts.items()}})
    return rows


def report(rows: list[dict]) -> str:
    published = {row["method"]: row for row in tables.records(9)}
    times, ratios = [], []
    for what, key, column, digits in (
        ("online step", "online_ms", "online_cost_ms_per_step", 1),
        ("decision", "decision_ms", "evaluation_cost_ms_per_step", 2),
    ):
        ours = [row[key] for row in rows]
        paper = [published[row["method"]][column] for row in rows]  # DFP is the last
        times.append([f"{what} here, ms", *(f"{ms:.{digits}f}" for ms in ours)])
        times.append([f"{what}, paper, ms", *paper])
        theirs = [float(ms) for ms in paper]
        ratios.append([f"{what} over DFP's, here", *(f"{ms / ours[-1]:.2f}" for ms in ours)])
        ratios.append([f"{what} over DFP's, paper", *(f"{ms / theirs[-1]:.2f}" for ms in theirs)])
    return table(["", *(row["method"] for row in rows)], times + ratios) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.device, args.rounds)
    about = {"device": args.device, "threads": args.threads, "rounds": args.rounds, "env": ENV}
    write_results(RESULTS / "table9.json", provenance() | about | {"rows": rows})
    (RESULTS / "table9.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
