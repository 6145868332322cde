"""Where a training run's time goes: environments, learning, sampling, evaluations, waiting.

    python benchmarks/train_wall.py pointmaze arm lift           # phases of 150 steps and an evaluation, in turns
    python benchmarks/train_wall.py pointmaze --whole            # the whole of `make train`
    python benchmarks/train_wall.py --read                       # write the table anew

A section's time is its own, without the sections inside it. Processor seconds are those of the learning process, all
its threads together; what it waits for another process is wall time alone. Other work on the machine makes wall times
longer, and not always by the same factor: they are those of runs in turns, with the load beside them.
"""

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

from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, rows_of, write_results
from train_runs import ARM, LIFT, MAZE

from wgflow_rl.agents import presets
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import loop
from wgflow_rl.training.settings import from_command_line
from wgflow_rl.training.state import TrainingState

RESULT = RESULTS / "train_wall.json"
ENVS = {"pointmaze": MAZE, "arm": ARM, "lift": LIFT}
SHORT = shlex.split(
    "--offline-steps 150 --online-steps 150 --online-start 0 --eval-every 300 --log-every 100"
)
WAYS = {
    "two threads": "--threads 2",
    "one thread": "--threads 1",
    "and evaluations in one": "--threads 1 --async-eval",
}


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
    agent = presets.AGENTS[type(settings.agent)]
    for owner, method, name in (
        (loop.Trainer, "train", "the rest"),
        (loop, "checked_update", "learning"),
        (agent, "draw_noise", "learning"),
        (agent, "act", "acting"),
        (Guard, "reset", "environment"),
        (Guard, "step", "environment"),
        (Replay, "sample", "sampling"),
        (loop.InlineEvaluator, "submit", "evaluation"),
        (TrainingState, "diagnose", "diagnostics"),
        (TrainingState, "save", "checkpoints"),
        (loop.Trainer, "record_evaluation", "waiting for an evaluation"),
    ):
        sections.watch(owner, method, name)
    load = os.getloadavg()[0]
    loop.run(settings, progress=False)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "sections": sections.seconds,
        "wall": sum(wall for wall, _ in sections.seconds.values()),
        "others": children.ru_utime + children.ru_stime,  # processor seconds, start included
        "load": [load, os.getloadavg()[0]],
    }


def measure(name: str, way: str, *, whole: bool) -> dict:
    """Train once in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--env", ENVS[name], *shlex.split(WAYS[way]), "--run-dir", f"{folder}/run"]
        command = [sys.executable, __file__, "--one", *flags, *([] if whole else SHORT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"env": name, "way": way, "whole": whole, **json.loads(done.stdout.splitlines()[-1])}


def table(rows: list[dict]) -> str:
    """Wall and processor seconds by section, for each environment and length."""
    lines = ["# Where a run's time goes"]
    for name, whole in sorted({(row["env"], row["whole"]) for row in rows}):
        lines += ["", f"**{name}, {'the whole run' if whole else 'cut short'}**", ""]
        lines += table_of([row for row in rows if (row["env"], row["whole"]) == (name, whole)])
    return "\n".join([*lines, ""])


def table_of(rows: list[dict]) -> list[str]:
    """The run of each way that took least, and the wall seconds of every run."""
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    runs = [[row for row in rows if row["way"] == way] for way in ways]
    best = [min(each, key=lambda row: row["wall"]) for each in runs]
    sections = sorted({section for row in best for section in row["sections"]})
    cells = {section: [cell_of(row, section) for row in best] for section in sections}
    cells["all"] = [
        f"{row['wall']:.1f}; {sum(seconds for _, seconds in row['sections'].values()):.1f}"
        for row in best
    ]
    cells["other processes, start included"] = [f"; {row['others']:.1f}" for row in best]
    cells["wall of every run"] = [", ".join(f"{row['wall']:.0f}" for row in each) for each in runs]
    cells["load before, after"] = [
        "; ".join("{:.1f}, {:.1f}".format(*r["load"]) for r in each) for each in runs
    ]
    header = " | ".join(["wall seconds (share); processor seconds", *ways])
    return markdown(header, ([label, *row] for label, row in cells.items()))


def cell_of(row: dict, section: str) -> str:
    wall, processor = row["sections"].get(section, (0.0, 0.0))
    return f"{wall:.2f} ({wall / row['wall']:.1%}); {processor:.2f}"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2:])))
        return
    parser = script_parser(__doc__)
    parser.add_argument("names", nargs="*", choices=[*ENVS, []])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS])
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--read", action="store_true")
    asked = parser.parse_args()
    rows = rows_of(RESULT)
    again = {(name, asked.whole, way) for name in asked.names for way in asked.ways or WAYS}
    rows = [row for row in rows if (row["env"], row["whole"], row["way"]) not in again]
    for name in asked.names:
        for _ in range(asked.repeats):
            for way in asked.ways or WAYS:
                rows.append(measure(name, way, whole=asked.whole))
                record = {"provenance": provenance(), "cores": os.cpu_count(), "rows": rows}
                write_results(RESULT, record)
    RESULT.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
