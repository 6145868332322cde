"""Where the time of a training run goes: environments, learning, sampling, waiting; with and without processes.

    python benchmarks/train_wall.py pointmaze arm lift           # phases of 150 steps and an evaluation, in turns
    python benchmarks/train_wall.py pointmaze --whole            # the whole of `make train`
    python benchmarks/train_wall.py --read                       # write the table anew

One thread of torch. A section's time is its own, without the sections inside it. Processor seconds are those of the
learning process; what it waits for an environment in another process is wall time alone. Other work on the machine
makes wall times longer, and not always by the same factor: they are those of runs in turns, with the load beside them.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from _provenance import provenance
from train_runs import ARM, LIFT, MAZE

from wgflow_rl import methods, train
from wgflow_rl.guard import Guard
from wgflow_rl.replay import Replay
from wgflow_rl.settings import from_command_line

RESULT = Path(__file__).parent / "results" / "train_wall.json"
ENVS = {"pointmaze": MAZE, "arm": ARM, "lift": LIFT}
SHORT = shlex.split(
    "--offline-steps 150 --online-steps 150 --online-start 0 --eval-every 300 --log-every 100"
)
PLACES = (0, 2)  # values of --env-processes


class Sections:
    """Seconds by section, wall and processor, each without what is inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.open: list[str] = []

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _charge(self) -> None:
        now = self._now()
        if self.open:
            for i in (0, 1):
                self.seconds[self.open[-1]][i] += now[i] - self.last[i]
        self.last = now

    @contextlib.contextmanager
    def inside(self, name: str):
        self._charge()
        self.open.append(f"evaluation: {name}" if "evaluation" in self.open else name)
        try:
            yield
        finally:
            self._charge()
            self.open.pop()

    def watch(self, owner: object, method: str, name: str) -> None:
        """Charge calls of a method to a section."""
        call = getattr(owner, method)

        @functools.wraps(call)
        def timed(*args, **kwargs):
            with self.inside(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)


def one(flags: list[str]) -> dict:
    """Train once in this process."""
    settings, sections = from_command_line(flags), Sections()
    agent = methods.AGENTS[type(settings.agent)]
    for owner, method, name in (
        (train, "train", "the rest"),
        (train.Plain, "__call__", "learning"),
        (agent, "draw_noise", "learning"),
        (agent, "act", "acting"),
        (Guard, "reset", "environment"),
        (Guard, "step", "environment"),
        (Replay, "sample", "sampling"),
        (train.Trainer, "evaluate", "evaluation"),
        (train.Trainer, "diagnose", "diagnostics"),
        (train.Trainer, "save", "checkpoints"),
    ):
        sections.watch(owner, method, name)
    load = os.getloadavg()[0]
    train.run(settings, progress=False)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "sections": sections.seconds,
        "wall": sum(wall for wall, _ in sections.seconds.values()),
        "others": children.ru_utime + children.ru_stime,  # processor seconds, start included
        "load": [load, os.getloadavg()[0]],
    }


def measure(name: str, processes: int, *, whole: bool) -> dict:
    """Train once in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--env",
            ENVS[name],
            "--threads",
            "1",
            "--run-dir",
            f"{folder}/run",
            *([] if whole else SHORT),
        ]
        command = [sys.executable, __file__, "--one", *flags, "--env-processes", str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"env": name, "processes": processes, "whole": whole, **json.loads(done.stdout.splitlines()[-1])}


def table(rows: list[dict]) -> str:
    """Processor seconds by section, least over the repetitions; below them wall seconds of every repetition."""
    lines = []
    for name, whole in sorted({(row["env"], row["whole"]) for row in rows}):
        runs = {
            p: [r for r in rows if (r["env"], r["whole"], r["processes"]) == (name, whole, p)] for p in PLACES
        }
        runs = {p: found for p, found in runs.items() if found}
        lines += ["", f"**{name}, {'the whole run' if whole else 'cut short'}**", ""]
        lines += ["| processor seconds | " + " | ".join(f"--env-processes {p}" for p in runs) + " |"]
        lines += ["|---" * (len(runs) + 1) + "|"]
        names = sorted({s for found in runs.values() for r in found for s in r["sections"]})

        def line(label, value, runs=runs):
            cells = [value(found) for found in runs.values()]
            return f"| {label} | " + " | ".join(cells) + " |"

        def least(found, section):
            return min(r["sections"].get(section, [0, 0])[1] for r in found)

        def total(found):
            return min(sum(cpu for _, cpu in r["sections"].values()) for r in found)

        lines += [line(s, lambda f, s=s: f"{least(f, s):.2f} ({least(f, s) / total(f):.1%})") for s in names]
        lines += [line("this process", lambda f: f"{total(f):.1f}")]
        lines += [line("the others, start included", lambda f: f"{min(r['others'] for r in f):.1f}")]
        lines += [line("wall", lambda f: ", ".join(f"{r['wall']:.0f}" for r in f))]
        lines += [
            line("load before, after", lambda f: "; ".join("{:.0f}, {:.0f}".format(*r["load"]) for r in f))
        ]
    return "\n".join(["# Where a run's time goes", *lines, ""])


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*ENVS, []])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--read", action="store_true")
    asked = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = [r for r in rows if asked.read or r["env"] not in asked.names or r["whole"] != asked.whole]
    for name in asked.names:
        for _ in range(asked.repeats):
            for processes in PLACES:
                rows.append(measure(name, processes, whole=asked.whole))
                record = {
                    "provenance": provenance(),
                    "torch_threads": 1,
                    "cores": os.cpu_count(),
                    "rows": rows,
                }
                RESULT.write_text(json.dumps(record, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
