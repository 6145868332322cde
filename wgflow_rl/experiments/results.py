"""Results of runs, and of logs of other code bases, grouped by configuration."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wgflow_rl import plugins
from wgflow_rl.agents import presets
from wgflow_rl.experiments.plan import ADDED_DEFAULTS, LOGGING
from wgflow_rl.experiments.tables import Phase
from wgflow_rl.training.settings import ONLY_OF_SHARDS, Settings, of_results
from wgflow_rl.training.table import read_rows

PEER_COLUMNS = ["step", "seed", "success"]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seeds only.

    `evaluations` has one row per evaluation with columns seed, step and success (a fraction),
    sorted by seed and step. `changed` are the agent's settings that differ from the preset;
    `conditions` describe preset, steps and data.
    """

    method: str
    env: str
    evaluations: pd.DataFrame
    offline: int | None = None  # steps of the offline phase; None if unknown
    total: int | None = None  # steps of both phases; None if unknown
    preset: str = ""
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    folder: Path = Path()  # folder of one of the runs
    peer: bool = False  # True for a log of another code base

    @property
    def protocol(self) -> str:
        return ", ".join(self.conditions)

    @property
    def name(self) -> str:
        return " ".join([self.method, *assignments(self.changed)])

    def at_end(self, phase: Phase) -> pd.Series:
        """Success at the last evaluation of a phase, for the seeds that have finished it."""
        rows: Any = self.evaluations  # Any: pandas without stubs confuses the type checker
        last = rows.groupby("seed").tail(1).set_index("seed")
        if phase == "online":
            if self.total is None:  # logs of other code bases are assumed to be complete
                return last["success"]
            finished = (last["step"] == self.total) & (self.total > (self.offline or 0))
            return last["success"][finished]
        if not self.offline:
            return last["success"][:0]
        finished = last.index[last["step"] >= self.offline]
        rows = rows[rows["seed"].isin(finished) & (rows["step"] <= self.offline)]
        return rows.groupby("seed")["success"].last()

    def curve(self) -> pd.DataFrame:
        """Success by step (rows) and seed (columns), at steps with an evaluation of every seed."""
        return self.evaluations.pivot(index="step", columns="seed", values="success").dropna()

    @property
    def unfinished(self) -> int:
        """Number of runs that have not reached their last step."""
        last: Any = self.evaluations.groupby("seed")["step"].max()
        return 0 if self.total is None else int((last < self.total).sum())


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and bootstrap interval; nan and None for one seed."""

    mean: float
    std: float
    interval: tuple[float, float] | None
    seeds: int


def summary(values: np.ndarray | pd.Series) -> Summary | None:
    """Statistics over seeds, in the unit of the values; None for an empty input."""
    values = np.asarray(values)
    if not len(values):
        return None
    several = len(values) > 1
    std = float(values.std(ddof=1)) if several else float("nan")
    return Summary(float(values.mean()), std, bootstrap(values) if several else None, len(values))


def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over the first axis [N], with a fixed seed."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Format settings as `name=value`."""
    return [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    ]


def abbreviate(steps: int) -> str:
    """Format a number of steps: 1000000 -> 1M, 1500 -> 1.5k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if steps >= size:
            return f"{steps / size:g}{unit}"
    return str(steps)


def read(places: Iterable[Path], *, peer_offline: int | None = None) -> list[RunGroup]:
    """Read all run folders, and all logs of other code bases, below the places.

    Args:
        places: folders, or single logs NAME/ENV.csv; missing ones are ignored.
        peer_offline: last step of the offline phase of the logs; None: unknown.

    Raises:
        ValueError: The message names file and row of an invalid log.
    """
    runs: dict[str, list[tuple[Path, dict[str, Any], pd.DataFrame]]] = defaultdict(list)
    groups: list[RunGroup] = []
    for place in places:
        for path in sorted(place.rglob("config.json")):
            if (run := _run(path)) is not None:
                runs[_configuration(run[1])].append(run)
        logs = [place] if place.suffix == ".csv" and place.exists() else place.rglob("*.csv")
        groups += [_peer(path, peer_offline) for path in sorted(logs) if _is_log(path)]
    groups += [_make_group(members) for members in runs.values()]
    return sorted(groups, key=lambda group: (group.env, group.peer, group.name, group.protocol))


def _run(config: Path) -> tuple[Path, dict[str, Any], pd.DataFrame] | None:
    """Read (folder, settings, evaluations) of a run; None if there is no evaluation or no run."""
    path = config.with_name("eval.csv")
    if not path.exists():
        return None
    settings = json.loads(config.read_text(encoding="utf-8")).get("settings")
    _, rows = read_rows(path)  # complete rows only: a kill may leave half a row
    wanted = {"method", "env", "agent", "schedule"}
    if not isinstance(settings, dict) or not wanted <= settings.keys() or not rows:
        return None
    evaluations = pd.DataFrame(rows)[["step", "success"]].astype({"step": int, "success": float})
    return config.parent, settings, evaluations.assign(seed=settings["seed"])


def _configuration(settings: Mapping[str, Any]) -> str:
    schedule = {name: value for name, value in settings["schedule"].items() if name not in LOGGING}
    return json.dumps(of_results(settings) | {"seed": None, "schedule": schedule}, sort_keys=True)


def _make_group(runs: list[tuple[Path, dict[str, Any], pd.DataFrame]]) -> RunGroup:
    folder, settings, _ = runs[0]
    schedule, agent, preset = settings["schedule"], settings["agent"], settings["preset"]
    try:
        plugins.load(settings.get("plugin", ()), optional=True)
        defaults = presets.preset(preset, settings["method"], settings["env"])
        plain = json.loads(json.dumps([dataclasses.asdict(default) for default in defaults]))
    except ValueError:  # a method or preset of another version, or of a plugin that is not here
        plain = [agent, schedule]
    changed, other = (
        {name: value for name, value in part.items() if name in default and default[name] != value}
        for default, part in zip(plain, (agent, schedule), strict=True)
    )
    offline, online = schedule["offline_steps"], schedule["online_steps"]
    conditions = [
        f"{preset} preset",
        f"{abbreviate(offline)} + {abbreviate(online)} steps",
        f"{schedule['eval_episodes']} episodes per evaluation",
        f"data={Path(settings['data']).name}" if settings.get("data") else "generated data",
    ]
    for name in ("offline_steps", "online_steps", "eval_episodes", *LOGGING):
        other.pop(name, None)
    usual = dict(ADDED_DEFAULTS)
    if settings.get("data"):
        usual |= {name: getattr(Settings, name) for name in ONLY_OF_SHARDS}
    other |= {n: settings[n] for n, value in usual.items() if settings.get(n, value) != value}
    # Of several runs with equal settings and seed, keep the longest.
    furthest = {
        int(rows["seed"].iloc[0]): rows
        for _, _, rows in sorted(runs, key=lambda run: run[2]["step"].iloc[-1])
    }
    return RunGroup(
        settings["method"],
        settings["env"],
        pd.concat([furthest[seed] for seed in sorted(furthest)], ignore_index=True),
        offline,
        offline + online,
        preset,
        agent,
        changed,
        (*conditions, *assignments(other)),
        folder,
    )


def _is_log(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [name.strip() for name in file.readline().strip().split(",")] == PEER_COLUMNS


def _peer(path: Path, offline: int | None) -> RunGroup:
    try:
        rows: Any = pd.read_csv(path, header=0, names=PEER_COLUMNS, index_col=False, dtype=str)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; wanted rows step,seed,success") from error
    if rows.empty:
        raise ValueError(f"{path} has a header and no rows; wanted step,seed,success")
    numbers = rows.apply(pd.to_numeric, errors="coerce")
    bad = numbers.isna().any(axis=1) | ~numbers["success"].between(0, 1)
    if bad.any():
        line = bad.idxmax()
        raise ValueError(
            f"{path}, line {line + 2}: {','.join(rows.loc[line].fillna(''))!r}; wanted three numbers, "
            "step,seed,success, with success a fraction between 0 and 1"
        )
    numbers = numbers.astype({"step": int, "seed": int}).sort_values(["seed", "step"])
    numbers = numbers.drop_duplicates(["seed", "step"], keep="last", ignore_index=True)
    return RunGroup(
        path.parent.name, path.stem, numbers, offline, conditions=("its own code",), peer=True
    )
