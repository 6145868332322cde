"""Environments of other packages: any gymnasium environment with Box spaces, registered by `envs.register`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.envs.name import Name

Make = Callable[..., gymnasium.Env]  # (env, **options)
Success = Callable[[np.ndarray, float, bool, dict[str, Any]], bool]
Score = Callable[[np.ndarray, float, bool, dict[str, Any]], float]


@dataclass(frozen=True)
class Source:
    """Environments registered under one name: see `envs.register`."""

    NAMES: dict[str, Name]
    maker: Make
    success: Success | None = None
    score: Score | None = None
    limit: int | None = None
    module: str = "__main__"  # that called `envs.register`

    def make(self, env: str, **options: Any) -> SingleTask:
        """Make an environment. Of `options`, the registered function receives `render_mode`.

        Raises:
            ValueError: If its spaces cannot be used, or it has no time limit.
        """
        chosen = {name: value for name, value in options.items() if name == "render_mode"}
        inner = self.maker(env, **chosen)
        _check(inner, env, limited=self.limit is not None)
        if self.limit is not None:
            inner = TimeLimit(inner, self.limit)
        return SingleTask(Adapted(inner, self.success, self.score), env)


class Adapted(gymnasium.Wrapper):
    """Actions in [-1, 1] for those of the environment's Box, `info["success"]`, and `info["score"]` if there is one.

    Attributes:
        bounds: ([A], [A]) lowest and highest actions of the environment, to which -1 and 1 are mapped.
    """

    def __init__(
        self, env: gymnasium.Env, success: Success | None = None, score: Score | None = None
    ):
        super().__init__(env)
        space: Any = env.action_space
        self.success, self.score, self.dtype = success, score, space.dtype
        self.bounds = (space.low.astype(np.float64), space.high.astype(np.float64))
        self.action_space = Box(-1.0, 1.0, shape=space.shape, dtype=np.float32)

    def step(self, action: Any):
        low, high = self.bounds
        own = (low + (np.asarray(action) + 1) / 2 * (high - low)).clip(low, high)
        observation, reward, terminated, truncated, info = self.env.step(own.astype(self.dtype))
        outcome = (observation, float(reward), bool(terminated), info)
        # A "score" of the environment's own may be anything.
        info = {name: value for name, value in info.items() if name != "score"}
        if self.score is not None:
            info["score"] = score = float(self.score(*outcome))
            if not 0 <= score <= 1:
                raise ValueError(f"score returned {score}; wanted a number in [0, 1]")
        if self.success is not None:
            info["success"] = self.success(*outcome)
        elif "success" not in info:
            raise ValueError(
                f"info has no 'success' ({', '.join(info) or 'it is empty'}). Register the environment with "
                "success=, a function of (observation, reward, terminated, info)."
            )
        return observation, reward, terminated, truncated, info


def _check(inner: gymnasium.Env, env: str, *, limited: bool) -> None:
    """Raise ValueError unless the spaces are one-dimensional Boxes, actions are bounded and episodes end."""
    seen, space = inner.observation_space, inner.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        raise ValueError(
            f"the observation space of {env} is {seen}; wanted a Box of one axis. "
            "gymnasium.wrappers.FlattenObservation makes one."
        )
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"the action space of {env} is {space}; wanted a Box of one axis")
    if not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"the action space of {env} is {space}; wanted finite bounds. gymnasium.wrappers.ClipAction or "
            "RescaleAction sets them."
        )
    layer: Any = inner
    while not limited and not isinstance(layer, TimeLimit):
        if layer is inner.unwrapped:
            raise ValueError(
                f"episodes of {env} have no time limit, so an evaluation might not end; register it with limit=STEPS"
            )
        layer = layer.env
