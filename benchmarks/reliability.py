"""How much a run survives: kills at random moments, and damaged files given to every reader of a run's folder.

    python benchmarks/reliability.py kills --count 200
    python benchmarks/reliability.py fuzz --count 20000

Both write into benchmarks/results/reliability.json (`--out`), each its own part. A kill is SIGKILL, at a moment drawn
uniformly over the time of a whole run (a real maze, small networks); the run goes on with --resume until it is whole,
is compared with the one that nothing happened to, and the next one begins, until there were `--count` kills. A fuzzed
file is a good one with bytes flipped, cut, left out, repeated, inserted or replaced; the outcomes allowed are contents
and the reader's own error, and of a checkpoint no other contents than those that were written.
"""

import json
import multiprocessing
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results

from wgflow_rl import envs, train
from wgflow_rl.data import robomimic
from wgflow_rl.data.episodes import LAYOUT
from wgflow_rl.data.generated import demonstrations
from wgflow_rl.training import checkpoint
from wgflow_rl.training.csv_table import Table, read_rows
from wgflow_rl.training.settings import Settings, as_json, from_command_line

RUN = (
    "--offline-steps 20 --online-steps 20 --online-start 3 --data-rows 2000 --threads 1 --hidden 32 32 --batch 16 "
    "--eval-every 15 --eval-episodes 1 --checkpoint-every 4 --log-every 3"
)
EPISODE = 15  # steps: several episodes fit into the online phase


# ---- kills -------------------------------------------------------------------------------------------------------


def go_on(folder: Path, ready=None) -> None:
    """What a person does after a kill: --resume, or the command again where there is nothing to resume."""
    import gymnasium

    torch.set_num_threads(1)
    make = envs.make
    envs.make = lambda *args, **options: gymnasium.wrappers.TimeLimit(
        make(*args, **options), EPISODE
    )
    if ready is not None:
        ready.send(None)
    if (folder / "config.json").exists():
        train.run(Settings.resumed(["--resume", str(folder)]), resume=True, progress=False)
    else:
        train.run(from_command_line([*RUN.split(), "--run-dir", str(folder)]), progress=False)


def outcome(folder: Path) -> tuple:
    """Everything a run leaves that must not depend on kills."""
    tables = []
    for name in ("train.csv", "eval.csv"):
        columns, rows = read_rows(folder / name)
        tables.append((columns, [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]))
    last = checkpoint.load(folder / "checkpoints")
    ring = {name: torch.cat([part[name] for part in last.rows]).tolist() for name in last.rows[0]}
    return (
        tables,
        last.step,
        last.state,
        {name: t.tolist() for name, t in last.tensors.items()},
        ring,
    )


def kills(count: int, seed: int, folder: Path) -> dict:
    """Kill runs `count` times; what became of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wgflow_rl.train", "ogbench", "torch.utils.tensorboard"])
    number, killed, before_first, different, runs = random.Random(seed), 0, 0, 0, 0

    def child(at: Path, wait: float | None) -> bool:
        """Whether it came to its end before it was killed."""
        here, there = context.Pipe()
        process = context.Process(target=go_on, args=(at, there))
        process.start()
        there.close()
        here.recv()
        process.join(wait)
        ended = process.exitcode is not None
        if process.exitcode not in (0, None):
            raise RuntimeError(f"a resumed run failed in {at}")
        process.kill()
        process.join()
        return ended

    child(folder / "first", None)  # makes the data
    began = time.monotonic()
    child(folder / "whole", None)
    seconds, wanted = time.monotonic() - began, outcome(folder / "whole")
    while killed < count:
        at = folder / str(runs)
        while not child(at, number.uniform(0, seconds) if killed < count else None):
            killed += 1
            before_first += not any(at.glob("checkpoints/step-*"))
        runs += 1
        different += outcome(at) != wanted
        print(f"{killed} kills, {runs} runs, {different} different", flush=True)
    return {
        "kills": killed,
        "before the first checkpoint": before_first,
        "runs": runs,
        "runs that ended differently": different,
        "seconds of a run": round(seconds, 1),
        "run": RUN,
    }


# ---- damaged files -----------------------------------------------------------------------------------------------


TOKENS = [b"\0", b"\n", b"\r", b'"', b"{", b"[" * 2000, b",", b"9" * 30, b"-1", b"NaN", b"\xff"]


def damaged(contents: bytes, number: random.Random) -> bytes:
    """The same with one to three things done to it."""
    for _ in range(number.randint(1, 3)):
        at, length = number.randrange(len(contents) + 1), number.randint(1, 16)
        some = contents[at : at + length]
        contents = number.choice(
            [
                contents[:at],
                contents[:at] + contents[at + length :],
                contents[:at] + some + contents[at:],
                contents[:at] + number.randbytes(length) + contents[at + length :],
                contents[:at]
                + bytes(byte ^ 1 << number.randrange(8) for byte in some[:1])
                + contents[at + 1 :],
                contents[:at] + number.choice(TOKENS) + contents[at:],
            ]
        )
    return contents


def good_checkpoint(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    tensors = {
        "weight": torch.randn(4, 3),
        "flags": torch.rand(7) < 0.5,
        "half": torch.randn(5).bfloat16(),
    }
    path = checkpoint.save(
        folder, step=3, tensors=tensors, state={"phase": "online", "best": [0.5, None]}
    )
    written = path.read_bytes()

    def read(path: Path) -> str:
        found = checkpoint.read(path)
        same = found.step == 3 and found.state == {"phase": "online", "best": [0.5, None]}
        same = same and all(torch.equal(found.tensors[name], t) for name, t in tensors.items())
        return "as written" if same and len(found.tensors) == len(tensors) else "other contents"

    path.write_bytes(written)
    return path, read


def good_config(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    path, settings = folder / "config.json", from_command_line([])
    path.write_text(json.dumps({"settings": as_json(settings), "resumed": []}, indent=2))

    def read(path: Path) -> str:
        # No hash: a person may read and copy this file. Checkpoints hold the settings too, and a resume compares them.
        return (
            "as written"
            if Settings.read(path.parent).check() == settings
            else "other valid settings"
        )

    return path, read


def good_table(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    path, columns = folder / "train.csv", ("step", "phase", "wall_s")
    table = Table(path, columns, None)
    for step in range(0, 60, 10):
        table.add({"step": step, "phase": "offline", "wall_s": step / 7, "loss": 1 / (step + 1)})
    table.close()
    rows = read_rows(path)[1]

    def read(path: Path) -> str:
        table = Table(path, columns, 40)
        table.close()
        kept = [row.items() >= old.items() for row, old in zip(table.rows, rows, strict=False)]
        if not all(kept):
            return "other rows"  # no hash: a digit may have changed
        return "as written" if len(kept) == 5 else "fewer rows"

    return path, read


def good_demonstrations(folder: Path) -> tuple[Path, Callable[[Path], str]]:
    env, path, rng = "lift-mh-low_dim", folder / "low_dim_v15.hdf5", np.random.default_rng(0)

    def part(lengths: list[int]) -> dict:
        rows = sum(lengths)
        observed = {
            f"{kind}/{key}": rng.normal(size=(rows, width))
            for kind in ("obs", "next_obs")
            for key, width in {**robomimic.WIDTHS, "object": 10}.items()
        }
        ends = np.isin(np.arange(1, rows + 1), np.cumsum(lengths))
        actions = rng.uniform(-1, 1, (rows, 7))
        whole = {"actions": actions, "rewards": ends.astype(float), "dones": ends.astype(np.int64)}
        return (
            whole
            | observed
            | {"lengths": lengths, "operators": ["clean"] * len(lengths), "model_file": "none"}
        )

    demonstrations.write([path], env, [part([5, 7])], [part([6])])
    written = [vars(episodes) for episodes in robomimic.contents(path, env)]

    def read(path: Path) -> str:
        found = [vars(episodes) for episodes in robomimic.contents(path, env)]
        same = all(
            np.array_equal(old[name], new[name])
            for old, new in zip(written, found, strict=True)
            for name in LAYOUT
        )
        return "as written" if same else "other contents"  # robomimic's files have no checksums

    return path, read


def fuzz(count: int, seed: int, folder: Path) -> dict:
    """Give each reader `count` damaged files; what it made of them."""
    results = {}
    for name, good in {
        "checkpoint": good_checkpoint,
        "config.json": good_config,
        "CSV table": good_table,
        "HDF5": good_demonstrations,
    }.items():
        number, seen = random.Random(seed), Counter()
        (folder / name).mkdir()
        path, read = good(folder / name)
        contents = path.read_bytes()
        for _ in range(count):
            path.write_bytes(damaged(contents, number))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                try:
                    seen[read(path)] += 1
                except ValueError:
                    seen["refused"] += 1
                except Exception as error:
                    seen[f"FAILED: {type(error).__name__}"] += 1
                    print(f"{name}: {error!r}", flush=True)
        results[name] = {"tried": count, **seen}
        print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("part", choices=["kills", "fuzz"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "reliability.json")
    ask = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {"kills": kills, "fuzz": fuzz}[ask.part](ask.count, ask.seed, Path(folder))
    record = json.loads(ask.out.read_text()) if ask.out.exists() else {}
    write_results(ask.out, record | {ask.part: {"result": result, **provenance()}})


if __name__ == "__main__":
    main()
