"""OGBench single-task environments: names, float32 observations, and episodes that repeat exactly.

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

import contextlib
import difflib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

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
_PATTERN = re.compile(r"(?P<suite>.+)-(?P<kind>navigate|play)-singletask(?:-task(?P<task>[1-5]))?-v0")


@dataclass(frozen=True)
class Name:
    """A parsed environment name; `task` 0 is the suite's default (pointmaze 1, cube and scene 2, puzzle 4)."""

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
    """Every environment name that `make` and `data.load` take: suites x (default task, tasks 1 to 5)."""
    return [
        f"{suite}-{kind}-singletask{task}-v0"
        for suite, kind in SUITES.items()
        for task in ("", *(f"-task{i}" for i in TASKS))
    ]


def parse(env: str) -> Name:
    """Split a name into suite, kind of data and task; raises ValueError with the nearest names."""
    match = _PATTERN.fullmatch(env)
    if match and SUITES.get(match["suite"]) == match["kind"]:
        return Name(match["suite"], match["kind"], int(match["task"] or 0))
    near = [name for name in names() if name.startswith(env)] if env else []
    near = near[:4] or difflib.get_close_matches(env, names(), n=4, cutoff=0.3)
    raise ValueError(
        f"env is {env!r}, which is not one of the {len(names())} known names. Nearest: {', '.join(near) or 'none'}. "
        "Names look like cube-single-play-singletask-task2-v0; wgflow_rl.envs.names() lists them all."
    )


def check_name(env: str) -> str:
    """Return `env` unchanged if `make` would take it; raises ValueError with the nearest names otherwise."""
    parse(env)
    return env


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block and put its former state back after it.

    OGBench's mazes and oracles draw from `np.random`; this keeps their randomness owned by the caller's seed.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


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
        os.unlink(env.fullpath)  # the maze's XML, which OGBench leaves behind in the temporary folder
    return env, spec.max_episode_steps


class SingleTask(gymnasium.Wrapper):
    """An OGBench task with float32 observations [S] and episodes that are a function of (seed, actions).

    `reset(seed=s)` followed by the same actions gives the same observations, bit for bit, in this process or
    another, whatever was simulated before. `reset()` takes its seed from a generator that the last given seed
    started; `info["seed"]` is the one in use, and `reset(seed=info["seed"])` replays the episode.
    Actions are clipped to [-1, 1] (OGBench would execute larger ones); a NaN raises ValueError.
    `info["success"]` is a bool, and describes the state before the action, as reward and terminated do.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self.name = name
        space = env.observation_space
        assert isinstance(space, Box)
        self.observation_space = Box(-np.inf, np.inf, shape=space.shape, dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, shape=env.action_space.shape, dtype=np.float32)
        self._seeds = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        self.unwrapped.action_space.seed(seed)
        with numpy_seeded(seed):
            observation, info = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), {**info, "seed": seed}

    def step(self, action: Any):
        action = np.asarray(action, dtype=np.float64)
        if not np.isfinite(action).all():
            raise ValueError(f"action is {action}; every entry must be finite. Check the policy for a NaN.")
        observation, reward, terminated, truncated, info = self.env.step(np.clip(action, -1.0, 1.0))
        info["success"] = bool(info["success"])
        return observation.astype(np.float32), float(reward), bool(terminated), bool(truncated), info


def make(env: str, **options: Any) -> SingleTask:
    """Make one of `names()`: observation float32 [S], action float32 [A] in [-1, 1], time limit included.

    Args:
        env: such as "cube-single-play-singletask-task2-v0"; without "-task2", the suite's default task.
        options: passed on to OGBench's constructor (`width=480, height=480` for sharper videos).
    Raises: ValueError naming the nearest names.
    """
    name = parse(env)
    inner, limit = build(name.gym_id, **options)
    return SingleTask(TimeLimit(inner, max_episode_steps=limit), env)
