"""Memory and speed of data in shards: a hundred million transitions, and a twentieth of them beside the same in memory.

    python benchmarks/data_shards.py            # some minutes, 1 GB of disk, 5 GB of memory

Shards have the arrays of cube-quadruple (observations 55, actions 5, qpos 42; 1,000 transitions a trajectory) filled
with normal numbers, which compress worse than real ones. Few different ones are written; the others are links to them,
which costs reading and memory the same. Each case is a process of its own: training data as `wgflow_rl.train` holds
them, BC with the laptop's network, batches of 256, one thread. A swap every 1,000 updates for a shard of a million, as
the protocol does; for smaller shards as much more often, so that an update reads the same number of rows.
"""

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, rows_of, write_results

ENV = "cube-quadruple-play-singletask-task1-v0"
STEM = "cube-quadruple-play-v0"
WIDTHS = {"observations": 55, "actions": 5, "qpos": 42}
LENGTH = 1000  # transitions of a trajectory


@dataclass(frozen=True)
class Case:
    name: str
    shards: int
    different: int  # of them
    rows: int  # transitions of a shard
    memory_gb: float
    updates: int


CASES = (
    Case("100M transitions, 4 GB", 100, 1, 1_000_000, 4.0, 2000),
    Case("5M transitions, 0.2 GB", 100, 4, 50_000, 0.2, 2000),
    Case("5M transitions, all in memory", 100, 4, 50_000, 4.0, 2000),
)


def write_shards(folder: Path, case: Case) -> None:
    """The files of a case, and a small partner for each."""
    for number in range(case.shards):
        for end, trajectories in (("", case.rows // LENGTH), ("-val", 10)):
            path = folder / f"{STEM}-{number:03d}{end}.npz"
            if number >= case.different:
                os.link(folder / f"{STEM}-{number % case.different:03d}{end}.npz", path)
                continue
            rng = np.random.default_rng((number, trajectories))
            rows = trajectories * (LENGTH + 1)
            arrays = {
                k: rng.standard_normal((rows, n), dtype=np.float32) for k, n in WIDTHS.items()
            }
            np.clip(arrays["actions"], -1, 1, out=arrays["actions"])
            np.savez_compressed(path, **arrays, terminals=np.arange(rows) % (LENGTH + 1) == LENGTH)


def measure(case: Case, folder: Path) -> dict:
    """Hold the data and train on them for a while; sizes in GB (10^9 bytes), times in seconds."""
    import torch

    from wgflow_rl import data, envs
    from wgflow_rl.agents import presets
    from wgflow_rl.data.replay import Replay
    from wgflow_rl.training.updates import update

    torch.set_num_threads(1)
    inner = envs.make(ENV)
    inner.reset(seed=0)
    base = peak()
    start = time.perf_counter()
    train, _ = data.load(ENV, folder=folder, memory_gb=case.memory_gb)
    headers = time.perf_counter() - start
    every = 1000 * case.rows // 1_000_000
    replay = Replay(train, capacity=train.resident, swap_every=every)
    cfg, _ = presets.preset("laptop", "bc", ENV)
    agent = presets.build(
        cfg, obs_dim=55, action_dim=5, seed=0, obs_mean=torch.zeros(55), obs_std=torch.ones(55)
    )
    generator = torch.Generator().manual_seed(0)
    sizes = {"chunk": cfg.chunk, "gamma": cfg.gamma, "generator": generator}
    draw = lambda step: replay.sample(256, **sizes, step=step)  # noqa: E731

    start = time.perf_counter()
    draw(0)
    filling = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(500):
        draw(0)
    sampling = (time.perf_counter() - start) / 500
    swaps = []
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(1, case.updates + 1):
        before = time.perf_counter()
        batch = draw(step)
        if step % every == 0:
            swaps.append(time.perf_counter() - before)
        update(agent, batch, agent.draw_noise(256, generator), online=False)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "transitions": len(train),
        "resident": train.resident,
        "peak_gb": peak(),
        "peak_without_data_gb": base,
        "seconds_headers": headers,
        "seconds_filling": filling,
        "batches_per_s_sampling_alone": 1 / sampling,
        "updates_per_s": case.updates / took,
        "cpu_seconds_per_update": cpu / case.updates,
        "swaps": len(swaps) if train.resident < len(train) else 0,
        "seconds_a_swap_holds_up_training": float(np.mean(swaps)),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(rows: list[dict]) -> str:
    lines = [
        "| case | resident | peak memory, GB (without data) | headers, s | filling, s | batches/s, sampling alone | "
        "updates/s | CPU ms an update, reading included | a swap holds up training, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['resident']:,} of {r['transitions']:,} | {r['peak_gb']:.2f} "
        f"({r['peak_without_data_gb']:.2f}) | {r['seconds_headers']:.1f} | {r['seconds_filling']:.1f} | "
        f"{r['batches_per_s_sampling_alone']:.0f} | {r['updates_per_s']:.1f} | "
        f"{1e3 * r['cpu_seconds_per_update']:.1f} | "
        + (
            f"{r['seconds_a_swap_holds_up_training']:.2f}, {r['swaps']} swaps |"
            if r["swaps"]
            else "no swaps |"
        )
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--only", type=int, help="this case alone, by number; the others' rows are kept"
    )
    parser.add_argument(
        "--folder", type=Path, help="shards are written here (default: a temporary folder)"
    )
    ask = parser.parse_args()
    out = RESULTS / "data_shards.json"
    known = rows_of(out) if ask.only is not None else []
    rows = {row["name"]: row for row in known}
    for number, case in enumerate(CASES):
        if ask.only not in (None, number):
            continue
        with tempfile.TemporaryDirectory(dir=ask.folder) as folder:
            write_shards(Path(folder), case)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                rows[case.name] = (
                    asdict(case) | process.submit(measure, case, Path(folder)).result()
                )
        print(rows[case.name], flush=True)
        record = {
            "command": "python benchmarks/data_shards.py",
            **provenance(),
            "rows": list(rows.values()),
        }
        write_results(out, record)
        out.with_suffix(".md").write_text(table(list(rows.values())))


if __name__ == "__main__":
    main()
