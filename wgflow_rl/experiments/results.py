"""What finished runs say: success at the end of each phase, over seeds; runs of ours, and logs of other code bases.

A log of another code base is a CSV file of three columns, NAME/ENV.csv, where NAME is what to call it:

    step,seed,success        step: updates while offline, environment steps after that, counted through
    100000,0,0.12            success: a fraction, 0 to 1, of that seed's evaluation episodes at that step
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl.agents import methods
from wgflow_rl.experiments.plan import LATER, NOT_LEARNING
from wgflow_rl.experiments.tables import Phase
from wgflow_rl.training.settings import ONLY_OF_SHARDS, Settings, of_results
from wgflow_rl.training.table import read_rows

PEER_COLUMNS = ["step", "seed", "success"]


@dataclass(frozen=True)
class Run:
    """One seed's evaluations, in order: steps [T] and success [T], a fraction."""

    seed: int
    steps: np.ndarray
    success: np.ndarray
    folder: Path

    def at_end(self, phase: Phase, offline: int | None, total: int | None) -> float | None:
        """Success at the phase's last evaluation, None while the run has not come to the end of it."""
        if phase == "online":
            if total is None:  # a peer: its log is taken to be whole
                return float(self.success[-1])
            return (
                float(self.success[-1])
                if total > (offline or 0) and self.steps[-1] == total
                else None
            )
        if not offline or self.steps[-1] < offline:
            return None
        return (
            float(self.success[self.steps <= offline][-1])
            if (self.steps <= offline).any()
            else None
        )


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only; `changed` are the agent's settings that are not the preset's."""

    method: str
    env: str
    preset: str
    agent: Mapping[str, Any]
    changed: Mapping[str, Any]
    offline: int | None  # steps of the phases; None where a peer's log does not say
    total: int | None
    runs: tuple[Run, ...]
    peer: bool = False
    conditions: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # other settings that are not the preset's

    @property
    def protocol(self) -> str:
        if self.peer:
            return "its own code"
        return ", ".join([f"{self.preset} preset", f"{self.steps} steps", *told(self.conditions)])

    @property
    def steps(self) -> str:
        offline = self.offline or 0
        return f"{short(offline)} + {short((self.total or 0) - offline)}"

    @property
    def name(self) -> str:
        return " ".join([self.method, *told(self.changed)])

    def at_end(self, phase: Phase) -> np.ndarray:
        """Success of the seeds that have come to the end of the phase."""
        ends = [run.at_end(phase, self.offline, self.total) for run in self.runs]
        return np.array([end for end in ends if end is not None])

    @property
    def unfinished(self) -> int:
        return 0 if self.total is None else sum(run.steps[-1] < self.total for run in self.runs)


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1; nan for one seed) and bootstrap interval of the mean (None for one seed)."""

    mean: float
    std: float
    interval: tuple[float, float] | None
    seeds: int


def summary(values: np.ndarray) -> Summary | None:
    """Over seeds, in the unit of the values; None of nothing."""
    if not len(values):
        return None
    several = len(values) > 1
    std = float(values.std(ddof=1)) if several else float("nan")
    return Summary(float(values.mean()), std, bootstrap(values) if several else None, len(values))


def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over the first axis [N]; the same for the same values."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def told(settings: Mapping[str, Any]) -> list[str]:
    """name=value of each."""
    return [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    ]


def short(steps: int) -> str:
    """1000000 -> 1M, 1500 -> 1.5k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if steps >= size:
            return f"{steps / size:g}{unit}"
    return str(steps)


def read(places: Iterable[Path], *, peer_offline: int | None = None) -> list[Arm]:
    """The arms of every run folder and every peer's log below the places.

    Raises: FileNotFoundError when a place is not there or nothing is found; ValueError naming file and row of a log
        that cannot be read.
    """
    ours: dict[str, list[tuple[Run, dict[str, Any]]]] = defaultdict(list)
    arms: list[Arm] = []
    places = tuple(places)
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist; wanted a folder of runs or logs")
        for path in sorted(place.rglob("config.json")):
            if (found := _ours(path)) is not None:
                run, settings = found
                ours[_configuration(settings)].append((run, settings))
        logs = [place] if place.suffix == ".csv" else sorted(place.rglob("*.csv"))
        arms += [_peer(path, peer_offline) for path in logs if _header(path) == PEER_COLUMNS]
    arms += [_arm(runs) for runs in ours.values()]
    if not arms:
        raise FileNotFoundError(
            f"no evaluated run and no log below {', '.join(map(str, places))}: wanted folders with config.json and "
            f"eval.csv, or files NAME/ENV.csv with the columns {','.join(PEER_COLUMNS)}"
        )
    return sorted(arms, key=lambda arm: (arm.env, arm.peer, arm.name, arm.protocol))


def _ours(path: Path) -> tuple[Run, dict[str, Any]] | None:
    evaluations = path.parent / "eval.csv"
    if not evaluations.exists():
        return None
    settings = json.loads(path.read_text(encoding="utf-8")).get("settings")
    _, rows = read_rows(evaluations)
    if (
        not isinstance(settings, dict)
        or not {"method", "env", "agent", "schedule"} <= settings.keys()
        or not rows
    ):
        return None
    return Run(settings["seed"], *_columns(rows), path.parent), settings


def _columns(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([int(row["step"]) for row in rows]), np.array(
        [float(row["success"]) for row in rows]
    )


def _configuration(settings: Mapping[str, Any]) -> str:
    schedule = {
        name: value for name, value in settings["schedule"].items() if name not in NOT_LEARNING
    }
    return json.dumps(of_results(settings) | {"seed": None, "schedule": schedule}, sort_keys=True)


def _arm(runs: list[tuple[Run, dict[str, Any]]]) -> Arm:
    settings = runs[0][1]
    schedule, agent = settings["schedule"], settings["agent"]
    try:
        defaults = methods.preset(settings["preset"], settings["method"], settings["env"])
        plain = json.loads(json.dumps([dataclasses.asdict(default) for default in defaults]))
    except ValueError:  # of a version that knew this method or preset
        plain = [agent, schedule]
    changed, conditions = (
        {name: value for name, value in part.items() if name in default and default[name] != value}
        for default, part in zip(plain, (agent, schedule), strict=True)
    )
    for name in (
        "offline_steps",
        "online_steps",
        *NOT_LEARNING,
    ):  # said with the preset, or of no consequence
        conditions.pop(name, None)
    if settings.get("data"):
        conditions["data"] = Path(settings["data"]).name
        for name in ONLY_OF_SHARDS:
            if settings.get(name, usual := getattr(Settings, name)) != usual:
                conditions[name] = settings[name]
    conditions |= {
        name: settings[name] for name, usual in LATER.items() if settings.get(name, usual) != usual
    }
    # A seed run twice with equal settings is one run: the one that came further.
    seeds = {
        run.seed: run for run in sorted((run for run, _ in runs), key=lambda run: run.steps[-1])
    }
    offline, total = schedule["offline_steps"], schedule["offline_steps"] + schedule["online_steps"]
    return Arm(
        settings["method"], settings["env"], settings["preset"], agent, changed, offline, total,
        tuple(seeds[seed] for seed in sorted(seeds)), conditions=conditions,
    )  # fmt: skip


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [name.strip() for name in file.readline().strip().split(",")]


def _peer(path: Path, offline: int | None) -> Arm:
    seeds: dict[int, dict[int, float]] = defaultdict(dict)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    for number, line in enumerate(lines, 2):
        try:
            step, seed, success = (float(cell) for cell in line.split(","))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {line!r}; wanted three numbers, step,seed,success"
            ) from error
        if not 0 <= success <= 1:
            raise ValueError(
                f"{path}, line {number}: success is {success:g}; wanted a fraction between 0 and 1"
            )
        seeds[int(seed)][int(step)] = success
    if not seeds:
        raise ValueError(f"{path} has a header and no rows; wanted step,seed,success")
    runs = [
        Run(seed, np.array(sorted(rows)), np.array([rows[step] for step in sorted(rows)]), path)
        for seed, rows in sorted(seeds.items())
    ]
    return Arm(path.parent.name, path.stem, "", {}, {}, offline, None, tuple(runs), peer=True)
