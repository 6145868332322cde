"""Profile an update against the roofline of this machine: `python -m wgflow_rl.profile [flags]`.

The flags are those of wgflow_rl.train. The lower bounds are the time of the update's matrix
products at the peak speed of this machine, and the time to move their operands at its memory
bandwidth. The data are random, since the cost of an update does not depend on them; no file is read
or written.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wgflow_rl.agents.agent import Agent
from wgflow_rl.data import Episodes
from wgflow_rl.data.replay import Replay
from wgflow_rl.training import matmul
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.training.trained import build_for
from wgflow_rl.training.updates import update
from wgflow_rl.utils.cli import one_line_errors

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
KINDS = {
    "matrix products": PRODUCTS,
    "GELU": ("aten::gelu", "aten::gelu_backward"),
    "LayerNorm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "optimiser, target networks": (
        "Optimizer.",
        "aten::_fused_adam_",
        "aten::_foreach_lerp_",
        "aten::lerp_",
    ),
    "random numbers": ("aten::normal_", "aten::uniform_", "aten::random_"),
}  # kind -> prefixes of operation names; the first match counts, the rest is "other operations"
ROWS = 10_000  # size of the random data set


class Peaks(NamedTuple):
    """Peak speeds with the present number of threads."""

    flops: float  # per second, float32 matrix products
    bandwidth: float  # bytes per second, read and written, of a copy much larger than the caches


class Work(NamedTuple):
    """Matrix products of a call: floating-point operations, and bytes of operands and results."""

    flops: int
    bytes: int

    def floors(self, peaks: Peaks) -> tuple[float, float]:
        """Lower bounds in seconds, of arithmetic and of memory traffic."""
        return self.flops / peaks.flops, self.bytes / peaks.bandwidth


class Traffic(TorchDispatchMode):
    """Count the bytes of operands and results of matrix products."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if str(func).rpartition(".")[0].replace(".", "::") in PRODUCTS:
            self.bytes += sum(t.nbytes for t in (*args, result) if isinstance(t, torch.Tensor))
        return result


def seconds(call: Callable[[], object], *, at_least: float = 0.5) -> float:
    """CPU seconds per thread of the fastest of several calls, after a warm-up call."""
    call()
    best, end = math.inf, time.process_time() + at_least
    while time.process_time() < end:
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best / torch.get_num_threads()


def measure_peaks() -> Peaks:
    """Measure matrix products of typical network sizes, and a copy of 128 MB."""
    fastest = 0.0
    for rows, width in ((256, 512), (1024, 512), (2048, 1024)):
        x, w = torch.randn(rows, width), torch.randn(width, width)
        out = x @ w
        took = seconds(lambda x=x, w=w, out=out: torch.mm(x, w, out=out), at_least=0.2)
        fastest = max(fastest, 2 * rows * width**2 / took)
    x = torch.zeros(1 << 25)
    y = torch.zeros_like(x)
    return Peaks(fastest, 2 * x.nbytes / seconds(lambda: y.copy_(x), at_least=0.2))


def work(call: Callable[[], object]) -> Work:
    """Count the matrix products of a call."""
    with FlopCounterMode(display=False) as counter, Traffic() as traffic:
        call()
    return Work(counter.get_total_flops(), traffic.bytes)


def by_kind(call: Callable[[], object], *, calls: int) -> dict[str, tuple[float, float]]:
    """Seconds and number of operations per call and kind.

    The profiler overstates small operations.
    """
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        for _ in range(calls):
            call()
    found = dict.fromkeys((*KINDS, "other operations"), (0.0, 0.0))
    for event in profile.key_averages():
        kind = next(
            (k for k, names in KINDS.items() if event.key.startswith(names)), "other operations"
        )
        total, count = found[kind]
        found[kind] = total + event.self_cpu_time_total / 1e6 / calls, count + event.count / calls
    return found


def random_data(obs_dim: int, action_dim: int) -> Episodes:
    """Standard normal observations and uniform actions, in trajectories of 100 steps."""
    rng = np.random.default_rng(0)
    terminals = np.arange(1, ROWS + 1) % 100 == 0
    return Episodes(
        observations=rng.standard_normal((ROWS, obs_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (ROWS, action_dim)).astype(np.float32),
        next_observations=rng.standard_normal((ROWS, obs_dim), dtype=np.float32),
        rewards=-np.ones(ROWS, np.float32),
        masks=np.ones(ROWS, np.float32),
        terminals=terminals,
        env="random",
    )


def parts(settings: Settings) -> tuple[Agent, dict[str, Callable[[], object]]]:
    """An agent, and the parts of a training step as functions by name."""
    cfg = settings.agent
    with contextlib.closing(settings.make_env()) as env:
        agent = build_for(env, cfg, seed=settings.seed)
    data = random_data(agent.obs_dim, agent.chunk_dim // cfg.predicted)
    replay = Replay(data, capacity=ROWS)
    generator = torch.Generator().manual_seed(settings.seed)

    def sample():
        return replay.sample(cfg.batch, **cfg.chunks, generator=generator)

    batch, noise, state = (
        sample(),
        agent.draw_noise(cfg.batch, generator),
        torch.randn(1, agent.obs_dim),
    )
    return agent, {
        "update": lambda: update(agent, batch, noise, online=settings.schedule.online_steps > 0),
        "noise": lambda: agent.draw_noise(cfg.batch, generator),
        "chunk sampling": sample,
        "acting, one state": lambda: agent.act(state, generator),
    }


def report(settings: Settings) -> str:
    """Text of the report.

    Raises:
        ValueError: For a device other than the CPU.
    """
    machine = settings.machine
    if machine.device != "cpu":
        raise ValueError(
            f"--device is {machine.device!r}; the profile measures CPU time, so wanted cpu"
        )
    torch.set_num_threads(machine.threads or 1)
    with matmul.using(machine.route):
        return _report(settings, machine.route)


def _report(settings: Settings, route: str) -> str:
    limits, (_, calls) = measure_peaks(), parts(settings)
    took = {
        name: seconds(call, at_least=2.0 if name == "update" else 0.3)
        for name, call in calls.items()
    }
    update = work(calls["update"])
    arithmetic, memory = update.floors(limits)
    kinds = by_kind(calls["update"], calls=5)
    everything = sum(total for total, _ in kinds.values())
    lines = [
        f"{settings.method}, {settings.env}, preset {settings.preset}, matrix products by the {route} "
        "route; milliseconds",
        f"update {took['update'] * 1e3:.2f}; lower bounds: {arithmetic * 1e3:.2f} ({update.flops / 1e9:.2f} GFLOP at "
        f"{limits.flops / 1e9:.1f} GFLOP/s), {memory * 1e3:.2f} ({update.bytes / 1e9:.3f} GB at "
        f"{limits.bandwidth / 1e9:.1f} GB/s); {arithmetic / took['update']:.0%} of the peak",
        *(
            f"  {name:<28}{total / everything:>6.1%}  {count:7.0f} calls"
            for name, (total, count) in kinds.items()
        ),
        "other parts of a step",
        *(
            f"  {name:<28}{t * 1e3:>9.3f}  {t / took['update']:>6.1%}"
            for name, t in took.items()
            if name != "update"
        ),
    ]
    return "\n".join(lines)


ABOUT = """Profile an update: milliseconds, lower bounds for this machine, share of each kind of operation.

Takes the flags of wgflow_rl.train, which choose the agent; nothing is trained, read or written."""


def main(args: list[str] | None = None) -> None:
    # else the profiler writes "USDT:" lines to stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with one_line_errors():
        flags = sys.argv[1:] if args is None else args
        print(report(from_command_line(flags, prog="python -m wgflow_rl.profile", about=ABOUT)))


if __name__ == "__main__":
    main()
