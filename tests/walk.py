"""A simulator that costs nothing, and a random policy for it."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box


class Walk(gymnasium.Env):
    """A noisy walk on a line, a function of (seed, actions); it ends well after `goal` steps or badly after `limit`."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, limit=7, goal=10**6):
        self.limit, self.goal, self.seeds, self.actions = limit, goal, [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.time, self.x = 0, self.np_random.normal()
        return self.look(), {}

    def look(self):
        return np.array([self.x, self.time], np.float32)

    def step(self, action):
        self.actions.append(float(action[0]))
        self.time += 1
        self.x += float(action[0]) + 0.1 * self.np_random.normal()
        success = self.home()
        return self.look(), -1.0 + success, success, self.time >= self.limit, {"success": success}

    def home(self):
        return self.time >= self.goal


class WalkHome(Walk):
    """Ends well near 0, badly after six steps."""

    def __init__(self, *_, **__):
        super().__init__(limit=6)

    def home(self):
        return abs(self.x) < 0.7


class Recorder:
    """A policy of random chunks that records its observations and its chunks."""

    def __init__(self, chunk):
        self.chunk, self.seen, self.given = chunk, [], []

    def __call__(self, obs, generator):
        self.seen.append(obs.clone())
        self.given.append(torch.rand(len(obs), self.chunk, 1, generator=generator) * 2 - 1)
        return self.given[-1]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)
