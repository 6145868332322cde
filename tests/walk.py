"""Trivial environments, and a policy that records what it does."""

import os
import sys

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box


class Walk(gymnasium.Env):
    """Noisy walk on a line, a function of (seed, actions): success after `goal` steps, truncation after `limit`."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, limit=7, goal=10**6):
        self.limit, self.goal, self.seeds, self.actions = limit, goal, [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.time, self.x = 0, self.np_random.normal()
        return self.observe(), {}

    def observe(self):
        return np.array([self.x, self.time], np.float32)

    def step(self, action):
        self.actions.append(float(action[0]))
        self.time += 1
        self.x += float(action[0]) + 0.1 * self.np_random.normal()
        success = self.succeeded()
        return (
            self.observe(),
            -1.0 + success,
            success,
            self.time >= self.limit,
            {"success": success},
        )

    def succeeded(self):
        return self.time >= self.goal


class WalkHome(Walk):
    """Success near 0; truncation after six steps."""

    def __init__(self, *_, **__):
        super().__init__(limit=6)

    def succeeded(self):
        return abs(self.x) < 0.7


class Failing(Walk):
    """Raise in the fourth step."""

    def step(self, action):
        if self.time == 3:
            raise KeyError("joint limit")
        return super().step(action)


def failing():
    """Raise instead of making an environment."""
    raise OSError("no model")


class Reporting(Walk):
    """Report whether its process has imported torch, and its number of threads."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {"success": ("torch" in sys.modules, os.environ["OMP_NUM_THREADS"])}


class Recorder:
    """Policy of random chunks that records its inputs and outputs."""

    def __init__(self, chunk):
        self.chunk, self.seen, self.given = chunk, [], []

    def __call__(self, obs, generator):
        self.seen.append(obs.clone())
        self.given.append(torch.rand(len(obs), self.chunk, 1, generator=generator) * 2 - 1)
        return self.given[-1]
