"""Read run folders, and logs of other code bases, as groups of runs that differ in their seeds only.

Run folders may come from other people: whatever is in a file, it is a result or a reason to skip that file.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from wgflow_rl.agents import presets
from wgflow_rl.experiments.plan import ADDED_DEFAULTS, LOGGING
from wgflow_rl.experiments.results import RunGroup, abbreviate, assignments
from wgflow_rl.training.settings import ONLY_OF_SHARDS, Settings, of_results
from wgflow_rl.training.table import read_rows

PEER_COLUMNS = ("step", "seed", "success")
LARGEST = 1 << 28  # bytes of a file that is read
MANY = 1000  # seeds of a log; their bootstrap takes 80 kB each


def read(
    places: Iterable[Path], *, peer_offline: int | None = None, skipped: list[str] | None = None
) -> list[RunGroup]:
    """Read all run folders, and all logs of other code bases, below the places.

    Args:
        places: folders, or single logs NAME/ENV.csv; missing ones are ignored.
        peer_offline: last step of the offline phase of the logs; None: unknown.
        skipped: list to which a sentence is added for every run or log that cannot be read; None:
            raise at the first.

    Raises:
        ValueError: The message names file and row of an invalid log or run.
    """
    attempt = _Attempt(skipped)
    runs: dict[str, list[tuple[Path, dict[str, Any], pd.DataFrame]]] = defaultdict(list)
    groups: list[RunGroup | None] = []
    for place in places:
        for path in sorted(place.rglob("config.json")):
            if (run := attempt(_run, path)) is not None:
                runs[_configuration(run[1])].append(run)
        single = place.suffix == ".csv" and not place.is_dir()
        logs = [place] if single and place.exists() else sorted(place.rglob("*.csv"))
        logs = [log for log in logs if log.name != "eval.csv"]  # those are of runs
        groups += [attempt(_peer, path, peer_offline) for path in logs]
    groups += [attempt(_make_group, members[0][0], members) for members in runs.values()]
    found = [group for group in groups if group is not None]
    return sorted(found, key=lambda group: (group.env, group.peer, group.name, group.protocol))


@dataclass(frozen=True)
class _Attempt:
    """Calls a reader of a path, and adds its failure to a list unless that is None."""

    skipped: list[str] | None

    def __call__(self, call: Callable[..., Any], path: Path, *args: Any) -> Any:
        try:
            return call(path, *args)
        except Exception as error:  # whatever is wrong with one file must not hide the others
            text = str(error)
            if str(path) not in text:
                text = f"{path}: {type(error).__name__}: {text}"
            if self.skipped is None:
                raise ValueError(text) from error
            self.skipped.append(text)
            return None


def _check_regular(path: Path) -> None:
    """Raise ValueError for a pipe or a device, which could block for ever, or a file of more than LARGEST bytes."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is not a regular file of at most {LARGEST:,} bytes")


def _read_text(path: Path, *, errors: str = "strict") -> str:
    """Read a text file with or without a byte-order mark. Raises: ValueError for bytes that are no text."""
    _check_regular(path)
    contents = path.read_bytes()
    utf16 = contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return contents.decode("utf-16" if utf16 else "utf-8", errors).lstrip("\ufeff")


def _run(config: Path) -> tuple[Path, dict[str, Any], pd.DataFrame] | None:
    """Read (folder, settings, evaluations) of a run; None if there is no evaluation or no run."""
    path = config.with_name("eval.csv")
    if not path.exists():
        return None
    stored = json.loads(_read_text(config))
    settings = stored.get("settings") if isinstance(stored, dict) else None
    wanted = {"method", "env", "agent", "schedule"}
    if not isinstance(settings, dict) or not wanted <= settings.keys():
        return None
    settings = {"data": None} | settings
    _check_types(config, settings)
    _check_regular(path)
    _, rows = read_rows(path)  # complete rows only: a kill may leave half a row
    if not rows:
        return None
    evaluations = pd.DataFrame(rows)[["step", "success"]].astype({"step": int, "success": float})
    good = (evaluations >= 0).all(axis=1) & (evaluations["success"] <= 1)
    if not good.all():
        raise ValueError(
            f"{path}, line {good.idxmin() + 2}: wanted a step and a success rate between 0 and 1"
        )
    return config.parent, settings, evaluations.assign(seed=settings["seed"])


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


def _configuration(settings: Mapping[str, Any]) -> str:
    schedule = {name: value for name, value in settings["schedule"].items() if name not in LOGGING}
    return json.dumps(of_results(settings) | {"seed": None, "schedule": schedule}, sort_keys=True)


def _make_group(folder: Path, runs: list[tuple[Path, dict[str, Any], pd.DataFrame]]) -> RunGroup:
    settings = runs[0][1]
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


def _peer(path: Path, offline: int | None) -> RunGroup | None:
    """Read a log of another code base; None for another table.

    Columns may be in any order, in capital letters and accompanied by others; the separator is a comma, a semicolon
    (then with decimal commas too) or a tab.

    Raises:
        ValueError: The message names file and line.
    """
    text = _read_text(path, errors="replace")  # of a table that is no log, nothing is asked
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    names, *lines = list(csv.reader(io.StringIO(text), delimiter=separator)) or [[]]
    names = [name.strip().lower() for name in names]
    missing = set(PEER_COLUMNS) - set(names)
    if missing:
        if missing == {"seed"} and "phase" not in names:  # eval.csv of this package has phases
            raise ValueError(f"{path} has no column seed; wanted {','.join(PEER_COLUMNS)}")
        return None
    if any(names.count(name) > 1 for name in PEER_COLUMNS):
        raise ValueError(f"{path} has two columns of one name; wanted {','.join(PEER_COLUMNS)}")
    rows: dict[tuple[int, int], float] = {}
    for number, line in enumerate(lines, start=2):
        if not any(cell.strip() for cell in line):
            continue
        cells = dict(zip(names, line, strict=False))
        try:
            step, seed, success = (_number(cells[name], separator) for name in PEER_COLUMNS)
            if step < 0 or step % 1 or seed % 1 or not 0 <= success <= 1:
                raise ValueError
        except (KeyError, ValueError):
            raise ValueError(
                f"{path}, line {number}: {separator.join(line)!r}; wanted three numbers, step,seed,success, with "
                "success a fraction between 0 and 1"
            ) from None
        rows[int(seed), int(step)] = success
    if not rows:
        raise ValueError(f"{path} has a header and no rows; wanted step,seed,success")
    if len(seeds := {seed for seed, _ in rows}) > MANY:
        raise ValueError(f"{path} has {len(seeds):,} seeds; wanted at most {MANY:,}")
    table = [(seed, step, rows[seed, step]) for seed, step in sorted(rows)]
    return RunGroup(
        path.parent.name,
        path.stem,
        pd.DataFrame(table, columns=["seed", "step", "success"]),
        offline,
        conditions=("its own code",),
        peer=True,
    )


def _number(cell: str, separator: str) -> float:
    """Parse a finite number below 2⁵³. Raises: ValueError."""
    value = float(cell.replace(",", ".") if separator == ";" else cell)
    if not math.isfinite(value) or abs(value) >= 2**53:
        raise ValueError(f"{cell} is out of range")
    return value
