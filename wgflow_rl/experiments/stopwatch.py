"""Estimates of the duration of runs, from an earlier run or a short one on this machine."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wgflow_rl import envs
from wgflow_rl.experiments import job
from wgflow_rl.experiments.cluster import Machines
from wgflow_rl.experiments.job import Job
from wgflow_rl.experiments.plan import Kind
from wgflow_rl.training.csv_table import read_numbers
from wgflow_rl.training.settings import Settings, as_json
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.processes import cores

STEPS = 200  # steps per phase of a short run
ROWS = 2_000  # transitions of a short run: two trajectories
WAVE = 8  # episodes that an evaluation plays in parallel


@dataclass(frozen=True)
class Pace:
    """Seconds per step and evaluation, and the source of these numbers."""

    offline_step: float
    online_step: float
    evaluation: float  # of one wave of episodes
    source: str

    def hours(self, settings: Settings) -> float:
        """Estimate the hours of a run with these settings."""
        schedule = settings.schedule
        offline, online = schedule.offline_steps, schedule.online_steps
        waves = -(-schedule.eval_episodes // WAVE) * -(-(offline + online) // schedule.eval_every)
        steps = offline * self.offline_step + online * self.online_step
        evaluations = waves * self.evaluation
        if settings.machine.async_eval:  # concurrent with the steps
            return max(steps, evaluations) / 3600
        return (steps + evaluations) / 3600


def from_earlier_run(root: Path, kind: Kind) -> Pace | None:
    """Pace of a run under `root` with the same agent, suite and device; None if there is none."""
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
            pace = from_logs(path.parent, f"earlier run {path.parent.name}") if same else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError):
            continue  # damaged
        if pace is not None and not math.isnan(pace.offline_step):
            return pace
    return None


def measure(kind: Kind, *, threads: int = 1) -> Pace:
    """Time a short run in a temporary folder.

    Raises:
        RuntimeError: If the training fails; the message has its output.
    """
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
        many = os.environ | dict.fromkeys(job.THREADS, str(threads))
        done = subprocess.run(command, env=many, capture_output=True, text=True, check=False)
        pace = (
            from_logs(Path(folder) / "run", f"{STEPS} steps per phase on this machine")
            if not done.returncode
            else None
        )
    if pace is None:
        raise UserError(
            f"{kind.row.label} in {kind.env} could not be timed: {done.stderr.strip()[-500:]}"
        )
    return pace


def from_logs(run: Path, source: str) -> Pace | None:
    """Median times from the clocks of train.csv and eval.csv; None if there are too few rows.

    A step's time is the difference between two rows of a phase without an evaluation in between. That of the offline
    phase is NaN for a run that began after the phase of another.
    """
    if not (run / "train.csv").exists():
        return None
    train, evaluations = _clock(run / "train.csv"), _clock(run / "eval.csv")
    evaluated = pd.Series(np.searchsorted(evaluations["step"], train["step"]))
    adjacent = (train["phase"] == train["phase"].shift()) & (evaluated.diff() == 0)
    per_step = train["wall_s"].diff() / train["step"].diff()
    step = per_step[adjacent].groupby(train["phase"]).median()
    waves = evaluations.merge(train, on="step", suffixes=("", "_before"))
    if step.empty or waves.empty:
        return None
    offline = step.get("offline", math.nan)
    schedule = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["schedule"]
    evaluation = (waves["wall_s"] - waves["wall_s_before"]).median()
    return Pace(
        offline,
        step.get("online", offline),
        evaluation / -(-schedule["eval_episodes"] // WAVE),
        source,
    )


def _clock(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_numbers(path), columns=["step", "phase", "wall_s"])


def estimate(jobs: Mapping[Job, Kind], runs: Path, machines: Machines) -> str:
    """List the runs with the hours that remain, timed once per agent and suite, in earlier runs under `runs` if any."""
    paces: dict[tuple[str, ...], Pace] = {}
    left: dict[Job, float] = {}  # hours
    for each, kind in jobs.items():
        key = (
            repr(kind.settings.agent),
            kind.env.partition("-singletask")[0],
            kind.settings.machine.device,
        )
        if key not in paces:
            print(f"timing {kind.row.method} in {kind.env}", file=sys.stderr)
            paces[key] = from_earlier_run(runs, kind) or measure(
                kind, threads=machines.cpus_per_run
            )
        parts = {each: kind.settings}
        if each.offline:
            offline, online = (
                dataclasses.replace(kind.settings.schedule, **{steps: 0})
                for steps in ("online_steps", "offline_steps")
            )
            parts = {
                each.offline: dataclasses.replace(kind.settings, schedule=offline),
                each: dataclasses.replace(kind.settings, schedule=online),
            }
        for part, settings in parts.items():
            ended = job.state(part.folder).state in ("done", "diverged")
            share = 1 - min(job.last_step(part.folder) / max(part.steps, 1), 1)
            left[part] = 0.0 if ended else share * paces[key].hours(settings)
    lines = [
        f"{job.state(part.folder).state:8} {need:8.2f} h  {part.folder.name}"
        for part, need in left.items()
    ]
    hours = sum(left.values())
    slots = max(1, (machines.cpus or cores()) // machines.cpus_per_run)
    sources = collections.Counter(pace.source for pace in paces.values())
    lines += [
        f"{len(jobs)} runs, {hours:.2f} hours of training; {hours / min(slots, len(jobs)):.2f} with {slots} at a time",
        "Step times: "
        + "; ".join(f"{source} ({count})" for source, count in sources.items())
        + ".",
        "Estimates are for one run at a time; runs that share cores take longer. Generating data is not included.",
    ]
    return "\n".join(lines)
