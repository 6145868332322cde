"""Time of one decision: a one-step policy beside a ten-step flow of the same size, in torch and exported.

    python benchmarks/acting.py                    # writes results/acting.json and results/acting.md; minutes

One observation, one CPU thread, untrained weights (a decision costs the same). Every variant takes its turn in short
blocks, so what slows the machine down slows all of them. Processor time of the thread: what other work does on the
machine is not counted, what it does to the caches is. "torch" is `agent.act`, noise and, for one sample too, the
critic's score included; the compiled policy (`torch.compile`, which needs a C++ compiler) and the files get their noise
as an input.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, write_results

from wgflow_rl import export
from wgflow_rl.agents import presets
from wgflow_rl.agents.agent import Agent

OBS, ACTION = 28, 5  # cube-single; chunks of five actions
SIZES = {"4 x 512 (paper)": (512,) * 4, "2 x 256 (laptop)": (256,) * 2}
POLICIES = {"one step": "dfp-ml-energy", "10-step flow": "qc-bfn"}
SAMPLES = (1, 16)  # 1: the policy alone; 16: the best of 16 by the critic
BLOCK, DROPPED = 25, 5  # calls of a variant in a row; the first ones meet cold caches


def variants(folder: Path) -> Iterator[tuple[dict, Callable[[], object]]]:
    """(what it is, one decision with its noise drawn before)."""
    for size, hidden in SIZES.items():
        for policy, method in POLICIES.items():
            for samples in SAMPLES:
                cfg = dataclasses.replace(presets.ROWS[method], hidden=hidden, act_samples=samples)  # type: ignore[call-arg]
                agent = presets.build(cfg, obs_dim=OBS, action_dim=ACTION)
                obs = torch.randn(2, OBS, generator=torch.Generator().manual_seed(0))
                actions, drawn = export.reference(agent, obs)
                about = {
                    "inputs": [{"name": name} for name in export.input_names(drawn)],
                    "output": {"name": "actions"},
                }
                one = [obs[:1], *(draw[:1] for _, draw in drawn)]
                what = {"size": size, "policy": policy, "samples": samples}
                yield {**what, "runtime": "torch"}, closure(agent.act, [one[0], torch.Generator()])
                yield (
                    {**what, "runtime": "torch.compile"},
                    closure(compiled(agent, one, actions[:1]), one),
                )
                for form, name in (("torchscript", "TorchScript"), ("onnx", "ONNX Runtime")):
                    path = folder / f"{len(hidden)}-{method}-{samples}{export.SUFFIX[form]}"
                    run = export.write(agent, form, obs, about, path)
                    torch.testing.assert_close(
                        run(*one), actions[:1], atol=export.TOLERANCE, rtol=0
                    )
                    if form == "onnx":
                        run = one_thread(path)
                        one = [tensor.numpy() for tensor in one]
                    yield {**what, "runtime": name}, closure(run, one)


def compiled(
    agent: Agent, one: list[torch.Tensor], expected: torch.Tensor
) -> Callable[..., object]:
    run = torch.compile(export.PolicyModule(agent).eval(), dynamic=False)
    torch.testing.assert_close(run(*one), expected, atol=export.TOLERANCE, rtol=0)
    return run


def one_thread(path: Path) -> Callable[..., object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (
        1  # without it: all cores, and this thread's time would not be the whole
    )
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [part.name for part in session.get_inputs()]
    return lambda *given: session.run(None, dict(zip(names, given, strict=True)))


def closure(run: Callable[..., object], inputs: list) -> Callable[[], object]:
    return lambda: run(*inputs)


def measure(calls: list[Callable[[], object]], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of every call, [variant, rounds * kept]: processor time of this thread, and by the clock."""
    spent: list[list[list[float]]] = [[[], []] for _ in calls]
    for _ in range(rounds):
        for kept, call in zip(spent, calls, strict=True):
            for i in range(BLOCK):
                wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
                call()
                cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
                if i >= DROPPED:
                    kept[0].append(cpu / 1e3)
                    kept[1].append(wall / 1e3)
    both = np.array(spent)
    return both[:, 0], both[:, 1]


def table(rows: list[dict]) -> str:
    """A line a size, number of samples and runtime: both policies, and how many times longer the flow takes."""
    lines = []
    cells = {(r["size"], r["samples"], r["runtime"], r["policy"]): r for r in rows}
    for size, samples, runtime in dict.fromkeys(key[:3] for key in cells):
        one, flow = (cells[size, samples, runtime, policy] for policy in POLICIES)
        what = "its only chunk" if samples == 1 else f"best of {samples}"
        times = [f"{r['cpu_us_p50']:.0f}, {r['cpu_us_p99']:.0f}" for r in (one, flow)]
        ratio = flow["cpu_us_p50"] / one["cpu_us_p50"]
        lines.append([size, what, runtime, *times, f"{ratio:.1f}"])
    columns = "one step: p50, p99 (µs) | 10-step flow: p50, p99 (µs) | ratio of p50"
    return "\n".join(markdown(f"networks | executed | runtime | {columns}", lines)) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--rounds", type=int, default=60, help=f"blocks of {BLOCK} calls for every variant"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch._dynamo.config.recompile_limit = 64  # all variants share the code that is compiled
    with tempfile.TemporaryDirectory() as folder:
        names, calls = zip(*variants(Path(folder)), strict=True)
        cpu, wall = measure(list(calls), args.rounds)
    rows = []
    for name, own, clock in zip(names, cpu, wall, strict=True):
        row = dict(name) | {"calls": len(own)}
        for kind, values in (("cpu", own), ("wall", clock)):
            row |= {f"{kind}_us_p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 99)}
        rows.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "provenance": provenance(),
        "obs": OBS,
        "chunk": [5, ACTION],
        "threads": 1,
        "rows": rows,
    }
    write_results(args.out / "acting.json", result)
    calls_each = rows[0]["calls"]
    about = (
        "Microseconds of one decision on one CPU thread: processor time of the thread, "
        f"{calls_each} calls of each variant in interleaved blocks, untrained weights, batch of one observation "
        f"({OBS} numbers), chunks of five {ACTION}-D actions. `python benchmarks/acting.py`; rows: "
        "[acting.json](acting.json), which has the times by the clock too. The machine was shared with other work, "
        "which caches feel: read the ratios.\n\n"
    )
    (args.out / "acting.md").write_text(about + table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
