"""OGBench single-task environments.

Which reward convention, and why. OGBench >= 1.2 offers two: "pre" (reward, terminated and success describe the
state *before* the action) and "post" (after it; the only one in 1.1). Its single-task environments register
"pre", and its loader labels row t of a data set from s_t. We keep "pre" online as well: then r and the mask are
the same function of s in the file and in the simulator, and one critic can learn from both. The price: an
episode ends one action after the goal is reached. Published numbers from OGBench 1.1 used "post" online;
success rates differ only for goals touched on the very last step of the time limit.

Rewards: pointmaze 0 at the goal and -1 elsewhere; cube, scene and puzzle (objects at their goal) - (objects).
Success gives reward 0 and terminated=True.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask

# Suite -> kind of official data set. pointmaze-teleport is left out: it draws from numpy's global generator inside
# step(), so an episode of it cannot be repeated from its seed.
SUITES = {
    "pointmaze-medium": "navigate",
    "pointmaze-large": "navigate",
    "pointmaze-giant": "navigate",
    "cube-single": "play",
    "cube-double": "play",
    "cube-triple": "play",
    "cube-quadruple": "play",
    "scene": "play",
    "puzzle-3x3": "play",
    "puzzle-4x4": "play",
}
TASKS = (1, 2, 3, 4, 5)
_PATTERN = re.compile(
    r"(?P<suite>.+)-(?P<kind>navigate|play)-singletask(?:-task(?P<task>[1-5]))?-v0"
)


@dataclass(frozen=True)
class Name:
    """A parsed environment name; `task` 0 is the suite's default (pointmaze 1, cube and scene 2, puzzle 4)."""

    source: ClassVar[str] = "ogbench"
    suite: str  # "cube-single"
    kind: str  # "play" or "navigate"
    task: int  # 1..5, or 0 for the default

    @property
    def gym_id(self) -> str:
        """Identifier in gymnasium's registry, without the kind of data: cube-single-singletask-task2-v0."""
        return f"{self.suite}-singletask{f'-task{self.task}' if self.task else ''}-v0"

    @property
    def dataset(self) -> str:
        """Stem of OGBench's data files: the task is not part of it, all five share one file."""
        return f"{self.suite}-{self.kind}-v0"


def names() -> list[str]:
    """Every name: suites x (default task, tasks 1 to 5)."""
    return [
        f"{suite}-{kind}-singletask{task}-v0"
        for suite, kind in SUITES.items()
        for task in ("", *(f"-task{i}" for i in TASKS))
    ]


def parse(env: str) -> Name | None:
    """Split a name into suite, kind of data and task; None if it is not one of `names()`."""
    match = _PATTERN.fullmatch(env)
    if match is None or SUITES.get(match["suite"]) != match["kind"]:
        return None
    return Name(match["suite"], match["kind"], int(match["task"] or 0))


def build(gym_id: str, **options: Any) -> tuple[Any, int]:
    """Construct a registered environment bare of wrappers; returns it with its time limit in steps.

    gymnasium.make would add a checker that warns about float precision on every construction. The arm's
    `action_space` is a property that makes a new Box (with one more such warning, and with fresh entropy, which
    its reset samples from) at each access; here it becomes one seedable Box.
    """
    import ogbench  # noqa: F401  (registers its environments)

    spec = gymnasium.spec(gym_id)
    assert isinstance(spec.entry_point, str) and spec.max_episode_steps is not None
    with warnings.catch_warnings():
        # Imported without a screen, dm_control tries a window first and says so, before it takes another way.
        warnings.filterwarnings("ignore", message=".*DISPLAY", category=UserWarning)
        creator: Any = load_env_creator(spec.entry_point)
    if isinstance(creator, type):
        space = Box(-1.0, 1.0, shape=(5,), dtype=np.float32)
        creator = type(creator.__name__, (creator,), {"action_space": space})
    env = creator(**{**spec.kwargs, **options})
    if "maze" in gym_id:
        os.unlink(
            env.fullpath
        )  # the maze's XML, which OGBench leaves behind in the temporary folder
    return env, spec.max_episode_steps


def make(env: str, **options: Any) -> SingleTask:
    """One of `names()`; see `envs.make`. `options` are those of OGBench's constructor."""
    name = parse(env)
    assert name is not None
    inner, limit = build(name.gym_id, **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=limit), env)
