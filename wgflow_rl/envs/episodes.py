"""Episodes that repeat exactly: what every environment here is wrapped in, whatever its suite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block and put its former state back after it.

    Simulators and oracles draw from `np.random`; this keeps their randomness owned by the caller's seed.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


class SingleTask(gymnasium.Wrapper):
    """A task with float32 observations [S] and episodes that are a function of (seed, actions).

    `reset(seed=s)` followed by the same actions gives the same observations, bit for bit, in this process or
    another, whatever was simulated before. `reset()` takes its seed from a generator that the last given seed
    started; `info["seed"]` is the one in use, and `reset(seed=info["seed"])` replays the episode.
    Actions are clipped to [-1, 1] (OGBench would execute larger ones); a NaN raises ValueError.
    `info["success"]` is a bool, and describes the same state as reward and terminated: see the suite's file.
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
            raise ValueError(
                f"action is {action}; every entry must be finite. Check the policy for a NaN."
            )
        observation, reward, terminated, truncated, info = self.env.step(np.clip(action, -1.0, 1.0))
        info["success"] = bool(info["success"])
        return (
            observation.astype(np.float32),
            float(reward),
            bool(terminated),
            bool(truncated),
            info,
        )
