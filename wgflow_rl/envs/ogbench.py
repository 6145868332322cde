"""OGBench single-task environments.

Reward convention. OGBench >= 1.2 offers two: "pre" (reward, terminated and success describe the
state *before* the action) and "post" (the state after it; the only convention in 1.1). Its
single-task environments register "pre", and its loader labels row t of a data set from s_t. We keep
"pre" online as well: reward and mask are then the same function of s in the data and in the
simulator, and one critic can learn from both. The cost: an episode ends one action after the goal
is reached. Published numbers from OGBench 1.1 used "post" online; success rates differ only for
goals reached on the last step of the time limit.

Rewards: mazes 0 at the goal and -1 elsewhere; cube, scene and puzzle (objects at their goal) -
(objects). Success gives reward 0 and terminated=True.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.envs.name import Name
from wgflow_rl.envs.rendering import importing_simulators
from wgflow_rl.utils.cli import UserError

# Suite -> kind of official data set. Mazes of type teleport are excluded: step() draws from numpy's
# global generator, so their episodes are not functions of their seed.
SUITES = {
    "pointmaze-medium": "navigate",
    "pointmaze-large": "navigate",
    "pointmaze-giant": "navigate",
    "antmaze-medium": "navigate",
    "antmaze-large": "navigate",
    "antmaze-giant": "navigate",
    "humanoidmaze-medium": "navigate",
    "humanoidmaze-large": "navigate",
    "humanoidmaze-giant": "navigate",
    "cube-single": "play",
    "cube-double": "play",
    "cube-triple": "play",
    "cube-quadruple": "play",
    "scene": "play",
    "puzzle-3x3": "play",
    "puzzle-4x4": "play",
}
WALKERS = ("antmaze", "humanoidmaze")  # OGBench has no scripted policy that could generate data
# The tasks of a suite share their data. The default task, without "-task", is 1 (mazes), 2 (cube,
# scene) or 4 (puzzle).
NAMES = {
    f"{suite}-{kind}-singletask{task}-v0": Name("ogbench", suite, f"{suite}-{kind}-v0", kind)
    for suite, kind in SUITES.items()
    for task in ("", *(f"-task{number}" for number in range(1, 6)))
}


def gym_id(env: str) -> str:
    """Identifier in gymnasium's registry: cube-single-singletask-task2-v0."""
    return env.replace(f"-{NAMES[env].kind}-", "-")


def build(identifier: str, **options: Any) -> tuple[Any, int]:
    """Construct a registered environment without wrappers; return it with its time limit in steps.

    gymnasium.make would add a checker that warns about float precision on every construction. The
    arm's `action_space` is a property that returns a new, unseeded Box at each access, from which
    its reset samples; here it is replaced by one Box that can be seeded.
    """
    try:
        with importing_simulators():
            import ogbench  # noqa: F401  (registers its environments)
    except ModuleNotFoundError as error:
        raise UserError(
            f"OGBench's environments need its package ({error}): pip install 'wgflow[rl]', on Python 3.11 or 3.12"
        ) from error

    spec = gymnasium.spec(identifier)
    assert isinstance(spec.entry_point, str) and spec.max_episode_steps is not None
    with importing_simulators(), warnings.catch_warnings():
        # Without a display, the import of dm_control warns before it selects another renderer.
        warnings.filterwarnings("ignore", message=".*DISPLAY", category=UserWarning)
        creator: Any = load_env_creator(spec.entry_point)
    if isinstance(creator, type):
        space = Box(-1.0, 1.0, shape=(5,), dtype=np.float32)
        creator = type(creator.__name__, (creator,), {"action_space": space})
    env = creator(**{**spec.kwargs, **options})
    if "maze" in identifier:
        os.unlink(env.fullpath)  # temporary XML file that OGBench does not delete
    return env, spec.max_episode_steps


def make(env: str, **options: Any) -> SingleTask:
    """Make one of `NAMES`: see `envs.make`. `options` are those of OGBench's constructor."""
    inner, limit = build(gym_id(env), **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=limit), env)
