"""Hours that a run will take: from earlier runs of its kind, else from a short real one on this machine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wgflow_rl import envs
from wgflow_rl.experiments import job
from wgflow_rl.experiments.plan import Kind
from wgflow_rl.training.settings import Settings, as_json
from wgflow_rl.training.table import read_rows
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.threads import THREADS

STEPS = 200  # of each phase in a short run; the first half of them is not timed
ROWS = 2_000  # of data in a short run: two trajectories
WAVE = 8  # episodes that an evaluation plays side by side


@dataclass(frozen=True)
class Pace:
    """Seconds that things take, and how that is known."""

    offline_step: float
    online_step: float
    evaluation: float  # of one wave of episodes
    source: str

    def hours(self, settings: Settings) -> float:
        schedule = settings.schedule
        offline, online = schedule.offline_steps, schedule.online_steps
        waves = -(-schedule.eval_episodes // WAVE) * -(-(offline + online) // schedule.eval_every)
        steps, evaluations = (
            offline * self.offline_step + online * self.online_step,
            waves * self.evaluation,
        )
        beside = (
            settings.machine.async_eval
        )  # they take time of the run where they outlast its steps
        return (max(steps, evaluations) if beside else steps + evaluations) / 3600


def earlier(root: Path, kind: Kind) -> Pace | None:
    """The pace of a run under `root` with the same agent and suite, whatever its seed and length."""
    wanted = as_json(kind.settings)
    for path in sorted(root.glob("*/config.json")):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
            same = (
                settings["method"] == kind.settings.method
                and envs.parse(settings["env"]).suite == envs.parse(kind.env).suite
                and json.dumps(settings["agent"]) == json.dumps(wanted["agent"])
                and settings["machine"]["device"] == kind.settings.machine.device
            )
            pace = clocked(path.parent, f"earlier run {path.parent.name}") if same else None
        except (OSError, ValueError, KeyError):
            continue
        if pace is not None:
            return pace
    return None


def measure(kind: Kind, *, threads: int = 1) -> Pace:
    """Train for a moment in a folder that is thrown away. Raises: RuntimeError with what the training said."""
    online = STEPS if kind.settings.schedule.online_steps else 0
    short = {
        "--offline-steps": STEPS,
        "--online-steps": online,
        "--online-start": 0,
        "--eval-every": STEPS,
        "--eval-episodes": WAVE,
        "--log-every": STEPS // 4,
        "--data-rows": ROWS,
        "--threads": threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        changes = [word for flag, value in short.items() for word in (flag, str(value))]
        command = [sys.executable, *job.TRAIN, *kind.flags, *changes, "--run-dir", f"{folder}/run"]
        many = os.environ | dict.fromkeys(THREADS, str(threads))
        done = subprocess.run(command, env=many, capture_output=True, text=True, check=False)
        pace = (
            clocked(Path(folder) / "run", f"{STEPS} steps of each phase, timed here")
            if not done.returncode
            else None
        )
    if pace is None:
        raise UserError(
            f"{kind.row.label} in {kind.env} could not be timed: {done.stderr.strip()[-500:]}"
        )
    return pace


def clocked(run: Path, source: str) -> Pace | None:
    """From the clocks of train.csv and eval.csv: a step's time between rows with no evaluation in between.

    None where there are not enough rows.
    """
    if not (run / "train.csv").exists():
        return None
    _, trained = read_rows(run / "train.csv")
    _, evaluated = read_rows(run / "eval.csv")
    stops = {int(row["step"]) for row in evaluated}
    seconds: dict[str, list[float]] = {"offline": [], "online": []}
    clock = {}
    for before, row in itertools.pairwise(trained):
        first, last = int(before["step"]), int(row["step"])
        if before["phase"] == row["phase"] and not any(first <= stop < last for stop in stops):
            seconds[row["phase"]].append(
                (float(row["wall_s"]) - float(before["wall_s"])) / (last - first)
            )
    for row in trained:
        clock[int(row["step"])] = float(row["wall_s"])
    waves = [
        float(row["wall_s"]) - clock[int(row["step"])]
        for row in evaluated
        if int(row["step"]) in clock
    ]
    if not seconds["offline"] or not waves:
        return None
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
    side_by_side = -(-settings["schedule"]["eval_episodes"] // WAVE)
    middle = {
        phase: sorted(values)[len(values) // 2] for phase, values in seconds.items() if values
    }
    return Pace(
        middle["offline"],
        middle.get("online", middle["offline"]),
        sorted(waves)[len(waves) // 2] / side_by_side,
        source,
    )
