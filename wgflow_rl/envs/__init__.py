"""Environments by name: one source per suite, float32 observations, reproducible episodes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.wrappers import FlattenObservation, FrameStackObservation

from wgflow_rl import plugins
from wgflow_rl.envs import custom, ogbench, pusht, robomimic
from wgflow_rl.envs.checker import check
from wgflow_rl.envs.episodes import SingleTask, numpy_seeded
from wgflow_rl.envs.name import Name

__all__ = [
    "SOURCES",
    "Name",
    "SingleTask",
    "check",
    "make",
    "names",
    "numpy_seeded",
    "parse",
    "register",
    "require",
]

# Sources of environments, modules or `custom.Source`; `wgflow_rl.data` has readers of the same
# names. Each provides NAMES, the parsed name of each environment, and make(env, **options).
SOURCES: dict[str, Any] = {"ogbench": ogbench, "pusht": pusht, "robomimic": robomimic}
BUILT_IN = tuple(SOURCES)


def register(
    source: str,
    environments: Sequence[str],
    make: custom.Make,
    *,
    success: custom.Success | None = None,
    score: custom.Score | None = None,
    limit: int | None = None,
) -> None:
    """Register environments, known to every command from then on; again under a name: replace them.

    Args:
        source: name of the group, which `data.register` gives a reader.
        environments: names of the environments.
        make: function of a name that returns a gymnasium environment with Box spaces of one axis;
            episodes must repeat from `reset(seed=)`. For videos it is called with
            `render_mode="rgb_array"`. Its bounded actions are scaled to [-1, 1].
        success: function of (observation, reward, terminated, info) after a step; None:
            `info["success"]`. The last step of an episode decides.
        score: function of the same that says how much of the task is done, a number in [0, 1]. Of
            the last step, it is logged and selects the best checkpoint in place of success.
        limit: time limit in steps, unless `make` sets one.

    Raises:
        ValueError: If a name is taken by another source, or unfit for a folder.
    """
    if source in BUILT_IN:
        raise ValueError(f"source is {source!r}, which is one of wgflow's; choose another name")
    if isinstance(environments, str) or not environments:
        raise ValueError(f"environments is {environments!r}; wanted a list of names")
    for name in environments:
        plugins.check_name("the environment", name)
        owners = [key for key, other in SOURCES.items() if key != source and name in other.NAMES]
        if owners:
            raise ValueError(
                f"the environment {name!r} belongs to the source {owners[0]!r}; choose another name"
            )
    module = sys._getframe(1).f_globals["__name__"]  # worker processes import it
    names = {name: Name(source, name, dataset=name) for name in environments}
    SOURCES[source] = custom.Source(names, make, success, score, limit, module)


def names() -> list[str]:
    """All environment names."""
    plugins.load_installed()
    return [name for source in SOURCES.values() for name in source.NAMES]


def parse(env: str) -> Name:
    """Parse an environment name.

    Raises:
        ValueError: The message lists the nearest names.
    """
    plugins.load_installed()
    for source in SOURCES.values():
        if env in source.NAMES:
            return source.NAMES[env]
    near = [name for name in names() if name.startswith(env)] if env else []
    near = near[:4] or difflib.get_close_matches(env, names(), n=4, cutoff=0.3)
    raise ValueError(
        f"env is {env!r}, which is not one of the {len(names())} known names. Nearest: {', '.join(near) or 'none'}. "
        "Names look like cube-single-play-singletask-task2-v0, lift-mh-low_dim or pusht; wgflow_rl.envs.names() lists "
        "all. --plugin MODULE adds those of a module."
    )


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
