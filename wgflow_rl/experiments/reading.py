"""Read run folders, and logs of other code bases, as groups of runs that differ in their seeds only.

Run folders may come from other people: whatever is in a file, it is a result or a reason to skip that file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wgflow_rl.agents import presets
from wgflow_rl.agents.schedules import Schedule
from wgflow_rl.envs import pusht
from wgflow_rl.experiments.peers import check_regular, read_curves, read_text
from wgflow_rl.experiments.plan import LOGGING, OFFLINE
from wgflow_rl.experiments.results import GENERATED, OFFICIAL, RunGroup, abbreviate, assignments
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.settings import ONLY_OF_SHARDS, Settings, of_results

_OF_GENERATOR = re.compile(r"-rows\d+-seed\d+-v\d+$")  # folders of `data.generated.generate`


def read(
    places: Iterable[Path], *, peer_offline: int | None = None, skipped: list[str] | None = None
) -> list[RunGroup]:
    """Read all run folders, and all logs of other code bases, below the places.

    Args:
        places: folders, or single logs (`peers.read_curves`); missing ones are ignored.
        peer_offline: last step of the offline phase of the logs; None: unknown.
        skipped: list to which a sentence is added for every run or log that cannot be read; None:
            raise at the first.

    Raises:
        ValueError: The message names file and row of an invalid log or run.
    """

    def attempt(call: Callable[..., Any], path: Path, *args: Any) -> Any:
        try:
            return call(path, *args)
        except Exception as error:  # whatever is wrong with one file must not hide the others
            text = str(error)
            if str(path) not in text:
                text = f"{path}: {type(error).__name__}: {text}"
            if skipped is None:
                raise ValueError(text) from error
            skipped.append(text)
            return None

    runs: dict[str, list[_Run]] = defaultdict(list)
    groups: list[RunGroup | None] = []
    for place in places:
        for path in sorted(place.rglob("config.json")):
            if OFFLINE in path.relative_to(place).parts:  # the runs that share it have its rows
                continue
            if (run := attempt(_run, path)) is not None:
                runs[_configuration(run.settings)].append(run)
        single = place.name.endswith((".csv", ".csv.gz")) and not place.is_dir()
        logs = [place] if single and place.exists() else sorted(place.rglob("*.csv*"))
        for log in logs:
            of_run = log.name == "eval.csv"
            if log.name.endswith((".csv", ".csv.gz")) and not of_run:
                groups += attempt(read_curves, log, peer_offline) or []
    groups += [attempt(_make_group, members[0].folder, members) for members in runs.values()]
    found = _told_apart([group for group in groups if group is not None])
    return sorted(found, key=lambda group: (group.env, group.peer, group.name, group.protocol))


def _told_apart(groups: list[RunGroup]) -> list[RunGroup]:
    """Add the folder of a run to the conditions of groups that would look alike: other data, or settings not shown."""
    looks = Counter((group.env, group.name, group.protocol) for group in groups)
    return [
        dataclasses.replace(group, conditions=(*group.conditions, f"as {group.folder}"))
        if looks[group.env, group.name, group.protocol] > 1
        else group
        for group in groups
    ]


class _Run(NamedTuple):
    folder: Path
    settings: dict[str, Any]
    evaluations: pd.DataFrame  # columns step, success and seed


def _run(config: Path) -> _Run | None:
    """Read a run; None if there is no evaluation or no run."""
    path = config.with_name("eval.csv")
    if not path.exists():
        return None
    stored = json.loads(read_text(config))
    recorded = stored.get("settings") if isinstance(stored, dict) else None
    wanted = {"method", "env", "agent", "schedule"}
    if not isinstance(recorded, dict) or not wanted <= recorded.keys():
        return None
    settings: dict[str, Any] = {"data": None} | recorded
    _check_types(config, settings)
    # A run of an older version lacks newer settings, which had their default values then.
    for name, kind in (("agent", _class_of(settings["method"])), ("schedule", Schedule)):
        settings[name] = _defaults(kind) | settings[name]
    check_regular(path)
    _, rows = read_rows(path)  # complete rows only: a kill may leave half a row
    if not rows:
        return None
    evaluations = pd.DataFrame(rows)[["step", "success"]].astype({"step": int, "success": float})
    good = (evaluations >= 0).all(axis=1) & (evaluations["success"] <= 1)
    if not good.all():
        raise ValueError(
            f"{path}, line {good.idxmin() + 2}: wanted a step and a success rate between 0 and 1"
        )
    return _Run(config.parent, settings, evaluations.assign(seed=settings["seed"]))


def _check_types(config: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that the report uses and that is of another type."""
    schedule = settings["schedule"]
    numbers = ("offline_steps", "online_steps", "eval_episodes")
    wanted: list[tuple[Any, str, type]] = [
        *((settings, name, str) for name in ("method", "env", "preset")),
        *((settings, name, dict) for name in ("agent", "schedule")),
        (settings, "seed", int),
        *((schedule, name, int) for name in numbers),
    ]
    for where, name, kind in wanted:
        value = where.get(name) if isinstance(where, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{config}: {name} is {value!r}; wanted {kind.__name__}")
    if not isinstance(settings.get("data"), str | None):
        raise ValueError(f"{config}: data is {settings['data']!r}; wanted str")


def _class_of(method: str) -> type | None:
    """The class of a method's settings; None for a method of another version, or of a plugin that is not here."""
    try:
        return type(presets.defaults(method))
    except ValueError:
        return None


def _defaults(kind: type | None) -> dict[str, Any]:
    """The default values of a class of settings, as JSON has them."""
    fields = () if kind is None else dataclasses.fields(kind)
    found = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(found))


def _configuration(settings: Mapping[str, Any]) -> str:
    schedule = {name: value for name, value in settings["schedule"].items() if name not in LOGGING}
    return json.dumps(of_results(settings) | {"seed": None, "schedule": schedule}, sort_keys=True)


def _make_group(folder: Path, runs: list[_Run]) -> RunGroup:
    settings = runs[0].settings
    schedule, agent, preset = settings["schedule"], settings["agent"], settings["preset"]
    try:
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
        _data(settings),
    ]
    for name in ("offline_steps", "online_steps", "eval_episodes", *LOGGING):
        other.pop(name, None)
    names = ("envs", "noise_on", *(ONLY_OF_SHARDS if settings.get("data") else ()))
    usual = {name: getattr(Settings, name) for name in names}
    other |= {n: settings[n] for n, value in usual.items() if settings.get(n, value) != value}
    # Of several runs with equal settings and seed, keep the longest.
    furthest = {
        run.settings["seed"]: run.evaluations
        for run in sorted(runs, key=lambda run: run.evaluations["step"].iloc[-1])
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
        data=_data(settings),
    )


def _data(settings: Mapping[str, Any]) -> str:
    """Describe the data of a run by what it recorded; folders of our generator are known by their names."""
    if not settings.get("data"):
        return OFFICIAL if settings["env"] in pusht.NAMES else GENERATED
    name = Path(settings["data"]).name
    return f"{GENERATED} {name}" * bool(_OF_GENERATOR.search(name)) or f"data={name}"
