"""Environments by name, one file per suite: names, float32 observations, and episodes that repeat exactly."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

from wgflow_rl.envs import ogbench, robomimic
from wgflow_rl.envs.episodes import SingleTask, numpy_seeded

__all__ = [
    "SOURCES",
    "Name",
    "SingleTask",
    "check_name",
    "make",
    "names",
    "numpy_seeded",
    "parse",
    "require",
]

# Where environments and their data come from: name of the source -> its file here. `wgflow_rl.data` has one of the
# same name. Each has names(), parse() and make().
SOURCES: dict[str, ModuleType] = {"ogbench": ogbench, "robomimic": robomimic}

Name = ogbench.Name | robomimic.Name


def names() -> list[str]:
    """Every environment name that `make` and `data.load` take."""
    return [name for source in SOURCES.values() for name in source.names()]


def parse(env: str) -> Name:
    """Split a name into source, suite and what its suite adds; raises ValueError with the nearest names."""
    for source in SOURCES.values():
        if (name := source.parse(env)) is not None:
            return name
    near = [name for name in names() if name.startswith(env)] if env else []
    near = near[:4] or difflib.get_close_matches(env, names(), n=4, cutoff=0.3)
    raise ValueError(
        f"env is {env!r}, which is not one of the {len(names())} known names. Nearest: {', '.join(near) or 'none'}. "
        "Names look like cube-single-play-singletask-task2-v0 or lift-mh-low_dim; wgflow_rl.envs.names() lists all."
    )


def check_name(env: str) -> str:
    """Return `env` unchanged if `make` would take it; raises ValueError with the nearest names otherwise."""
    parse(env)
    return env


def require(env: str) -> None:
    """Raises: RuntimeError naming the extra if `env` is one of robomimic's and robosuite is not installed."""
    if parse(env).source == "robomimic":
        robomimic.package()


def make(env: str, **options: Any) -> SingleTask:
    """Make one of `names()`: observation float32 [S], action float32 [A] in [-1, 1], time limit included.

    Args:
        env: such as "cube-single-play-singletask-task2-v0"; without "-task2", the suite's default task.
        options: passed on to the suite's constructor (`width=480, height=480` for sharper videos).

    Raises:
        ValueError: The message names the nearest names.
        RuntimeError: See `require`.
    """
    return SOURCES[parse(env).source].make(env, **options)
