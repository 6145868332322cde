"""Wrapper of all environments that makes episodes reproducible from their seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block; restore its state afterwards.

    Simulators and oracles draw from `np.random`; the block makes their draws a function of `seed`.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


class SingleTask(gymnasium.Wrapper):
    """A task with float32 observations [S] and episodes that are functions of (seed, actions).

    `reset(seed=s)` followed by equal actions gives bit-identical observations in any process,
    independent of earlier episodes. `reset()` draws a seed from a generator seeded by the last
    explicit seed; `info["seed"]` is the seed in use. Actions are clipped to [-1, 1] (OGBench would
    execute larger ones). `info["success"]` is a bool and describes the same state as reward and
    terminated: see the suite's module.

    Args:
        env: environment to wrap.
        name: environment name.

    Raises:
        ValueError: In `step` if an action is not finite.
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
        # A copy: some environments reuse their buffer, and a history keeps earlier observations.
        return np.array(observation, dtype=np.float32), {**info, "seed": seed}

    def step(self, action: Any):
        action = np.asarray(action, dtype=np.float64)
        if not np.isfinite(action).all():
            raise ValueError(
                f"action is {action}; every entry must be finite. Check the policy for a NaN."
            )
        observation, reward, terminated, truncated, info = self.env.step(np.clip(action, -1.0, 1.0))
        info["success"] = bool(info["success"])
        return (
            np.array(observation, dtype=np.float32),
            float(reward),
            bool(terminated),
            bool(truncated),
            info,
        )
