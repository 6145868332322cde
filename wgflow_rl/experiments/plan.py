"""From methods x environments x seeds, or a table of the paper, to jobs; a job's folder is named by its settings.

The name ends in a hash of every resolved setting that changes results. The same configuration therefore has one folder,
however it was asked for, and is run once; a changed default is another configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgflow_rl import envs
from wgflow_rl.agents import presets
from wgflow_rl.experiments.job import Job
from wgflow_rl.experiments.tables import LISTS, TABLES, ResultTable, Row
from wgflow_rl.training.settings import Settings, as_json, from_command_line, of_results

NOT_LEARNING = ("log_every", "checkpoint_every")  # of the schedule: what is written down on the way
# Settings younger than the folders' names, which keep them at these values.
LATER = {"envs": 1, "noise_on": "cpu"}
RESERVED = (
    "--method",
    "--env",
    "--seed",
    "--seeds",
    "--run-dir",
    "--resume",
    "--threads",
    "--preset",
)


@dataclass(frozen=True)
class Kind:
    """The runs of one method in one environment: they differ in their seeds only."""

    row: Row
    env: str
    settings: Settings
    flags: tuple[str, ...]  # of train, without --seed

    def job(self, root: Path, seed: int, *, threads: int = 1) -> Job:
        settings = dataclasses.replace(self.settings, seed=seed)
        folder = root.resolve() / f"{self.row.method}-{self.env}-s{seed}-{digest(settings)}"
        schedule = settings.schedule
        steps = schedule.offline_steps + schedule.online_steps
        return Job(folder, (*self.flags, "--seed", str(seed)), steps, threads)


@dataclass(frozen=True)
class Plan:
    """What can be run, and what had to be left out with the reason for it."""

    kinds: tuple[Kind, ...]
    left_out: tuple[str, ...] = ()


def digest(settings: Settings) -> str:
    """Twelve hexadecimal digits of SHA-256 over the settings that change results."""
    contents = of_results(as_json(settings))
    contents = {k: v for k, v in contents.items() if k not in LATER or v != LATER[k]}
    contents["schedule"] = {k: v for k, v in contents["schedule"].items() if k not in NOT_LEARNING}
    if contents["data"] is not None:
        contents["data"] = str(Path(contents["data"]).expanduser().resolve())
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def table(number: int) -> ResultTable:
    """A table of success rates. Raises: ValueError for other numbers, saying what such a table holds."""
    if number in LISTS:
        raise ValueError(
            f"--table is {number}, which asks for no runs ({LISTS[number]}); tables of runs: "
            f"{', '.join(map(str, TABLES))}. `python -m wgflow_rl.report --tables {number}` prints it."
        )
    if number not in TABLES:
        raise ValueError(
            f"--table is {number}; the paper has Tables 1 to 10, of which "
            f"{', '.join(map(str, TABLES))} ask for runs"
        )
    return TABLES[number]


def of_table(
    number: int, *, preset: str | None = None, variants: bool = False, extra: Sequence[str] = ()
) -> Plan:
    """The runs of one of the paper's tables, without those whose method or environment is not here.

    Args:
        preset: of train; None for the table's own.
        variants: include the rows that the paper does not have.
        extra: flags of train, added to every run.

    Raises:
        ValueError: See `table`, and `train` for `extra`.
    """
    asked = table(number)
    rows = asked.rows + asked.variants * variants
    known = set(envs.names())
    absent = {f"method {row.method}": row.method not in presets.METHODS for row in rows}
    absent |= {f"environment {env}": env not in known for env in asked.envs}
    return Plan(
        tuple(
            kind(row, env, preset=preset or asked.preset, extra=extra)
            for row in rows
            for env in asked.envs
            if row.method in presets.METHODS and env in known
        ),
        tuple(f"{name}: not in this version" for name, gone in absent.items() if gone),
    )


def of_names(
    names: Iterable[str], environments: Iterable[str], *, preset: str, extra: Sequence[str] = ()
) -> Plan:
    """Every method in every environment. Raises: ValueError naming the known ones, and as `train` for `extra`."""
    environments = tuple(environments)
    rows = [Row(name, name) for name in names]
    return Plan(
        tuple(kind(row, env, preset=preset, extra=extra) for row in rows for env in environments)
    )


def kind(row: Row, env: str, *, preset: str, extra: Sequence[str] = ()) -> Kind:
    """Resolve the settings of a row in an environment. Raises: ValueError for flags that a sweep sets itself."""
    for flag in extra:
        if flag.partition("=")[0].replace("_", "-") in RESERVED:
            raise ValueError(
                f"{flag} is set by the sweep for each run; wanted other flags of train. Use --methods, --envs, "
                "--seeds, --preset, --runs and --cpus-per-run."
            )
    flags = ("--method", row.method, "--env", env, "--preset", preset, *row.flags, *extra)
    if extra:
        return Kind(row, env, from_command_line(flags), flags)
    # Without a command-line parser for each cell of a table, which takes half a second.
    agent, schedule = presets.preset(preset, row.method, envs.check_name(env))
    agent = dataclasses.replace(agent, **row.settings)
    settings = Settings(agent, schedule, method=row.method, env=env, preset=preset)
    return Kind(row, env, settings.check(), flags)


def resolved(kinds: Iterable[Kind]) -> list[dict[str, Any]]:
    """The settings of the agent and of the schedule of every kind, one dictionary each."""
    return [
        {"row": kind.row.label, "env": kind.env, "method": kind.row.method}
        | {"preset": kind.settings.preset}
        | dataclasses.asdict(kind.settings.agent)
        | dataclasses.asdict(kind.settings.schedule)
        for kind in kinds
    ]
