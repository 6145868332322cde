"""Environments by name: one module per suite, float32 observations, reproducible episodes."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.wrappers import FlattenObservation, FrameStackObservation

from wgflow_rl.envs import ogbench, pusht, robomimic
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

# One module per source of environments; `wgflow_rl.data` has one of the same name. Each provides
# names(), parse() and make().
SOURCES: dict[str, ModuleType] = {"ogbench": ogbench, "pusht": pusht, "robomimic": robomimic}

Name = ogbench.Name | pusht.Name | robomimic.Name


def names() -> list[str]:
    """All environment names."""
    return [name for source in SOURCES.values() for name in source.names()]


def parse(env: str) -> Name:
    """Parse an environment name.

    Raises:
        ValueError: The message lists the nearest names.
    """
    for source in SOURCES.values():
        if (name := source.parse(env)) is not None:
            return name
    near = [name for name in names() if name.startswith(env)] if env else []
    near = near[:4] or difflib.get_close_matches(env, names(), n=4, cutoff=0.3)
    raise ValueError(
        f"env is {env!r}, which is not one of the {len(names())} known names. Nearest: {', '.join(near) or 'none'}. "
        "Names look like cube-single-play-singletask-task2-v0, lift-mh-low_dim or pusht; wgflow_rl.envs.names() lists "
        "all."
    )


def check_name(env: str) -> str:
    """Return `env` if it is a known name.

    Raises:
        ValueError: The message lists the nearest names.
    """
    parse(env)
    return env


def require(env: str) -> None:
    """Check that the packages of `env` are installed.

    Raises:
        RuntimeError: The message names what to install.
    """
    source = parse(env).source
    if source == "robomimic":
        robomimic.import_robosuite()
    elif source == "pusht":
        pusht.import_gym_pusht()


def make(env: str, *, history: int = 1, **options: Any) -> gymnasium.Env:
    """Make an environment: observations float32 [S], actions float32 [A] in [-1, 1], a time limit.

    Args:
        env: such as "cube-single-play-singletask-task2-v0"; without "-task2", the suite's default
            task.
        history: observations are the last `history` ones, oldest first, as one vector; the first
            of an episode is repeated.
        options: keyword arguments of the suite's constructor (`width=480, height=480` for sharper
            videos).

    Raises:
        ValueError: The message lists the nearest names.
        RuntimeError: See `require`.
    """
    made: gymnasium.Env = SOURCES[parse(env).source].make(env, **options)
    if history > 1:
        made = FlattenObservation(FrameStackObservation(made, history, padding_type="reset"))
    return made
