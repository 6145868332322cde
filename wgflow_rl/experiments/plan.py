"""Jobs of a sweep: methods x environments x seeds, or the runs of a table of the paper.

The name of a job's folder ends in a hash of every setting that changes results. Equal
configurations have one folder, independent of the flags that select them, and run once; a changed
default or an added setting makes another configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgflow_rl import envs
from wgflow_rl.agents import presets
from wgflow_rl.experiments.job import Job, state
from wgflow_rl.experiments.tables import LISTS, TABLES, ResultTable, Row
from wgflow_rl.training.settings import (
    Settings,
    as_json,
    from_command_line,
    of_offline_phase,
    of_results,
)

OFFLINE = "offline-phases"  # folder, beside the runs, of offline phases that several of them share
LOGGING = ("log_every", "checkpoint_every")  # of the schedule: without effect on results
RESERVED = (
    "--method",
    "--env",
    "--seed",
    "--seeds",
    "--run-dir",
    "--offline-run",
    "--resume",
    "--threads",
    "--preset",
)


@dataclass(frozen=True)
class Kind:
    """Runs of one method in one environment, which differ in their seeds only."""

    row: Row
    env: str
    settings: Settings
    flags: tuple[str, ...]  # flags of train, without --seed

    def job(self, root: Path, seed: int, *, threads: int = 1) -> Job:
        settings = dataclasses.replace(self.settings, seed=seed)
        folder = root.resolve() / f"{self.row.method}-{self.env}-s{seed}-{digest(settings)}"
        schedule = settings.schedule
        steps = schedule.offline_steps + schedule.online_steps
        return Job(folder, (*self.flags, "--seed", str(seed)), steps, threads)

    def offline_job(self, root: Path, seed: int, *, threads: int = 1) -> Job | None:
        """The offline phase alone, equal for kinds that differ in the online phase only.

        None if there is one phase, or none that ends with an evaluation.
        """
        settings = dataclasses.replace(self.settings, seed=seed)
        schedule = settings.schedule
        if not schedule.offline_steps or not schedule.online_steps:
            return None
        if schedule.offline_steps % schedule.eval_every:
            return None
        name = f"{self.env}-s{seed}-{_hash(of_offline_phase(settings))}"
        flags = (*self.flags, "--online-steps", "0", "--seed", str(seed))
        return Job(root.resolve() / OFFLINE / name, flags, schedule.offline_steps, threads)


def share_offline(jobs: Mapping[Job, tuple[Kind, int]], root: Path) -> dict[Job, Kind]:
    """Let jobs that have not begun share their offline phase if several have an equal one, or if it exists already.

    Args:
        jobs: kind and seed of each job.
        root: parent of the run folders.

    Returns:
        The jobs in the same order, with their kinds.
    """
    phases = {
        each: kind.offline_job(root, seed, threads=each.threads)
        for each, (kind, seed) in jobs.items()
        if not (each.folder / "config.json").exists()
    }
    users = Counter(phase.folder for phase in phases.values() if phase)
    first: dict[Path, Job] = {}  # the flags of the phase are those of its first user
    shared: dict[Job, Kind] = {}
    for each, (kind, _) in jobs.items():
        phase = phases.get(each)
        if phase and (users[phase.folder] > 1 or state(phase.folder).state != "new"):
            phase = first.setdefault(phase.folder, phase)
            each = dataclasses.replace(each, offline=phase)
        shared[each] = kind
    return shared


@dataclass(frozen=True)
class Plan:
    """Runs of a sweep, and the reasons for skipping others."""

    kinds: tuple[Kind, ...]
    skipped: tuple[str, ...] = ()


def digest(settings: Settings) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the settings that change results."""
    contents = of_results(as_json(settings))
    schedule = {k: v for k, v in contents["schedule"].items() if k not in LOGGING}
    return _hash(contents | {"schedule": schedule})


def _hash(contents: dict[str, Any]) -> str:
    if contents["data"] is not None:
        data = str(Path(contents["data"]).expanduser().resolve())
        contents = contents | {"data": data}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def table(number: int) -> ResultTable:
    """Return a table of success rates. Raises: ValueError for other numbers."""
    if number in LISTS:
        raise ValueError(
            f"--table is {number}, which has no success rates ({LISTS[number]}); tables of runs: "
            f"{', '.join(map(str, TABLES))}. `python -m wgflow_rl.report --tables {number}` prints it."
        )
    if number not in TABLES:
        raise ValueError(
            f"--table is {number}; the paper has Tables 1 to 10, of which "
            f"{', '.join(map(str, TABLES))} have success rates"
        )
    return TABLES[number]


def from_table(
    number: int, *, preset: str | None = None, variants: bool = False, extra: Sequence[str] = ()
) -> Plan:
    """Runs of one of the paper's tables, without unknown methods and environments.

    Args:
        number: number of the table.
        preset: preset of train; None: that of the table. laptop: for Table 7, laptop-offline.
        variants: include DFP with fields that are not in the paper.
        extra: flags of train, added to every run.

    Raises:
        ValueError: See `table`, and `train` for `extra`.
    """
    chosen = table(number)
    preset = chosen.laptop if preset == "laptop" else preset or chosen.preset
    rows = chosen.rows + chosen.variants * variants
    known = set(envs.names())
    absent = {f"method {row.method}": row.method not in presets.METHODS for row in rows}
    absent |= {f"environment {env}": env not in known for env in chosen.envs}
    return Plan(
        tuple(
            kind(row, env, preset=preset, extra=extra)
            for row in rows
            for env in chosen.envs
            if row.method in presets.METHODS and env in known
        ),
        tuple(f"{name}: not in this version" for name, gone in absent.items() if gone),
    )


def from_methods(
    names: Iterable[str], environments: Iterable[str], *, preset: str, extra: Sequence[str] = ()
) -> Plan:
    """Runs of every method in every environment.

    Raises:
        ValueError: For unknown names and invalid flags.
    """
    environments = tuple(environments)
    rows = [Row(name, name) for name in names]
    return Plan(
        tuple(kind(row, env, preset=preset, extra=extra) for row in rows for env in environments)
    )


def kind(row: Row, env: str, *, preset: str, extra: Sequence[str] = ()) -> Kind:
    """Resolve the settings of a row in an environment. Raises: ValueError for flags that the sweep sets."""
    for flag in extra:
        name = flag.partition("=")[0].replace("_", "-")
        if name in RESERVED:
            raise ValueError(
                f"{flag} is set by the sweep for each run; use its own flags instead: --methods, --envs, "
                "--seeds, --preset, --runs or --cpus-per-run."
            )
        if name in row.flags[::2]:
            varied = " ".join(row.flags)
            raise ValueError(f"{flag} is what the rows of the table vary ({varied}); leave it out")
    flags = ("--method", row.method, "--env", env, "--preset", preset, *row.flags, *extra)
    if extra:
        settings = from_command_line(flags)
        if settings.data is not None:  # absolute: other machines have another current folder
            flags = (*flags, "--data", settings.data)
        return Kind(row, env, settings, flags)
    # Without extra flags, avoid the command-line parser, which takes half a second per cell of a
    # table.
    envs.parse(env)
    agent, schedule = presets.preset(preset, row.method, env)
    agent = dataclasses.replace(agent, **row.settings)
    settings = Settings(agent, schedule, method=row.method, env=env, preset=preset)
    return Kind(row, env, settings.check(), flags)


def settings_table(kinds: Iterable[Kind]) -> list[dict[str, Any]]:
    """Settings of agent and schedule, one dictionary per kind."""
    return [
        {"row": kind.row.label, "env": kind.env, "method": kind.row.method}
        | {"preset": kind.settings.preset}
        | dataclasses.asdict(kind.settings.agent)
        | dataclasses.asdict(kind.settings.schedule)
        for kind in kinds
    ]
