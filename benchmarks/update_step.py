"""One update of DFP, at two sizes: torch in whole passes, torch in blocks (ours), and JAX.

    python benchmarks/update_step.py --case pi --jax-python OTHER/bin/python      # a' ~ pi, the paper's TD target
    python benchmarks/update_step.py --case best16 --jax-python OTHER/bin/python  # a' the best of 16: published code
    python benchmarks/update_step.py --case laptop --jax-python OTHER/bin/python  # the laptop preset's sizes

One core, one thread, processor time, repetitions interleaved; every variant is a process of its own, all start from
the same weights, batch and noise, and their losses are compared before anything is timed. JAX has its own interpreter
(there: `pip install "jax[cpu]"`; the project needs none); without --jax-python its column is left out. --compiled adds
our loss and its gradient through torch.compile, which needs a C++ compiler. Rows go to results/update_step.json, the
table to update_step.md. About a minute a case on a free core, and another one or two with --compiled.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, write_results
from _update import OBS, agent_of, random_batch

from wgflow_rl import profile
from wgflow_rl.agents import networks, presets
from wgflow_rl.training.updates import update

ENV = "cube-double-play-singletask-task2-v0"
PAPER = presets.paper("dfp-ml-energy", ENV)
CASES = {  # settings, and how many updates are timed at once
    "pi": (dataclasses.replace(PAPER, target_samples=1), 1),
    "best16": (dataclasses.replace(PAPER, target_samples=16), 1),
    "laptop": (presets.preset("laptop", "dfp-ml-energy", ENV)[0], 20),
}
TORCH = {
    "torch, whole passes": 1 << 62,
    "torch, blocks": 1024,
    "torch, blocks, compiled": 1024,
}  # vectors that a pass without gradient takes at a time
PLAIN, OURS, COMPILED = TORCH
SETTLING = 30 << 20  # bytes
CHECKED = 5  # updates whose losses are compared


def start_of(case: str):
    """(settings, batch, noise), the same in every process."""
    cfg, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(cfg, generator)
    return cfg, batch, agent_of(cfg).draw_noise(cfg.batch, generator)


def serve(case: str, variant: str) -> None:
    """For every number of steps that comes in, make them, and answer with their seconds and the last losses."""
    networks.BLOCK = TORCH[variant]
    # Loading data frees a piece as large as this before the first step; glibc then keeps smaller ones, as here.
    torch.empty(SETTLING, dtype=torch.uint8)
    cfg, batch, noise = start_of(case)
    agent, log = agent_of(cfg), {}
    if variant == COMPILED:
        agent.loss = torch.compile(agent.loss)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            log = update(agent, batch, noise, online=True)
        seconds = time.process_time() - start
        losses = [float(log["critic_loss"]), float(log["actor_loss"])]
        print(json.dumps({"seconds": seconds, "losses": losses}), flush=True)


class Process:
    """A variant in a process of its own, which says its version, then answers."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a variant stopped; its message is above")
        return json.loads(line)

    def __call__(self, steps: int) -> tuple[float, list[float]]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["losses"]


def jax_of(python: str, cfg, batch, noise) -> Process:
    """update_step_jax.py in another interpreter, from the same weights, batch and noise."""
    arrays = {name: t.numpy() for name, t in agent_of(cfg).state_dict().items()}
    for name, group in (("batch", batch), ("noise", noise)):
        arrays |= {f"{name}.{key}": t.numpy() for key, t in group._asdict().items()}
    with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
        np.savez(file, cfg=np.array(json.dumps(dataclasses.asdict(cfg))), **arrays)
    process = Process(python, str(Path(__file__).with_name("update_step_jax.py")), file.name)
    Path(file.name).unlink()
    return process


def first_updates(variants: dict) -> dict[str, float]:
    """Wall-clock seconds of the first update of each variant, compilation included."""
    seconds = {}
    for name, run in variants.items():
        start = time.perf_counter()
        run(1)
        seconds[name] = time.perf_counter() - start
    return seconds


def check_losses(variants: dict) -> dict[str, float]:
    """The largest relative difference of any loss from plain torch's, over a few updates; also warms all up."""
    far = dict.fromkeys(variants, 0.0)
    for _ in range(CHECKED):
        losses = {name: run(1)[1] for name, run in variants.items()}
        for name, mine in losses.items():
            gaps = [abs(a - b) / abs(b) for a, b in zip(mine, losses[PLAIN], strict=True)]
            far[name] = max(far[name], *gaps)
    assert max(far.values()) < 1e-3, f"not the same step: {far}"
    return far


def parts_at_paper_size(cfg, agent, batch, noise) -> dict[str, float]:
    """Seconds of what is no matrix product of a network: the fields of both terms, and acting."""
    with torch.no_grad():
        a_hat, pool = agent.policy(batch.obs, noise.generated), noise.candidates[:, : cfg.top_k]
        data = batch.actions.flatten(1)[:, None]
    generator, one, eight = (
        torch.Generator().manual_seed(0),
        torch.randn(1, OBS),
        torch.randn(8, OBS),
    )
    return {
        "field, one positive": profile.seconds(lambda: agent.field(a_hat, data), at_least=0.3),
        "field, top-K positives": profile.seconds(
            lambda: agent.improve_field(a_hat, pool), at_least=0.3
        ),
        "acting, one state": profile.seconds(lambda: agent.act(one, generator), at_least=0.3),
        "acting, eight states": profile.seconds(lambda: agent.act(eight, generator), at_least=0.3),
    }


def measure(case: str, *, repetitions: int, jax_python: str | None, compiled: bool) -> dict:
    cfg, batch, noise = start_of(case)
    _, at_once = CASES[case]
    variants = {
        name: Process(sys.executable, __file__, "--case", case, "--serve", name)
        for name in TORCH
        if compiled or name != COMPILED
    }
    if jax_python:
        variants["JAX"] = jax_of(jax_python, cfg, batch, noise)
    first = first_updates(variants)
    far = check_losses(variants)
    times = {name: [] for name in variants}
    speeds = []
    for _ in range(repetitions):
        speeds.append(profile.measure_peaks().flops)
        for name, run in variants.items():
            times[name].append(run(at_once)[0] / at_once)
    agent = agent_of(cfg)
    work = profile.work(lambda: update(agent, batch, noise, online=True))
    return {
        "case": case,
        "flops": work.flops,
        "bytes": work.bytes,
        "machine_flops": max(speeds),
        "machine_bandwidth": profile.measure_peaks().bandwidth,
        "seconds": times,
        "first_update": first,
        "largest_loss_difference": far,
        "parts": parts_at_paper_size(cfg, agent, batch, noise),
        "jax": variants["JAX"].versions["jax"] if jax_python else None,
        "provenance": provenance(),
    }


def table(rows: dict[str, dict]) -> str:
    lines = [
        "Milliseconds of processor time of one update, one thread: median [least, most]. Ratio: of medians, to JAX.",
        "Share: floor (FLOPs at the best speed of matrix products seen between the repetitions) over median.",
        "",
    ]
    body = []
    for case, row in rows.items():
        floor = row["flops"] / row["machine_flops"]
        peer = statistics.median(row["seconds"].get("JAX", [float("nan")]))
        for name, times in row["seconds"].items():
            t = statistics.median(times)
            work = f"{row['flops'] / 1e9:.1f}, {floor * 1e3:.0f}"
            time = f"{t * 1e3:.0f} [{min(times) * 1e3:.0f}, {max(times) * 1e3:.0f}]"
            gap = f"{row['largest_loss_difference'][name]:.0e}"
            body.append([case, work, name, time, f"{t / peer:.2f}", f"{floor / t:.2f}", gap])
    lines += markdown(
        "TD target | GFLOP, floor | variant | time | ratio | share | losses differ by at most", body
    )
    for case, row in rows.items():
        parts = ", ".join(f"{name} {t * 1e3:.2f}" for name, t in row["parts"].items())
        first = "; ".join(f"{name} {t:.1f}" for name, t in row.get("first_update", {}).items())
        lines += [
            "",
            f"{case}: {len(row['seconds'][OURS])} repetitions on {row['provenance']['processor']}; "
            f"matrix products {row['machine_flops'] / 1e9:.1f} GFLOP/s; "
            f"memory {row['machine_bandwidth'] / 1e9:.1f} GB/s, operands {row['bytes'] / 1e9:.2f} GB; "
            f"JAX {row['jax']}. Milliseconds of parts: {parts}."
            + (f" Seconds of the first update: {first}." if first else ""),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--jax-python", help="an interpreter that can import jax")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--serve", choices=TORCH, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "update_step.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.serve:
        serve(given.case, given.serve)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            0, {max(os.sched_getaffinity(0))}
        )  # the variants' processes inherit it
    rows = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    rows[given.case] = measure(
        given.case,
        repetitions=given.repetitions,
        jax_python=given.jax_python,
        compiled=given.compiled,
    )
    write_results(given.out, rows)
    text = table(rows)
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
