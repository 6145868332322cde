"""Running a chunked policy in environments: collecting transitions one at a time, and evaluating."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

Act = Callable[[Tensor, torch.Generator], Tensor]  # obs [B, S], generator -> chunk [B, h, A]

TRAIN_SEEDS, EVAL_SEEDS = 1, 2  # streams of reset seeds that never meet


def reset_seed(seed: int, stream: int, episode: int) -> int:
    """Seed of `env.reset` for an episode: a function of its number alone, so an episode can be played again."""
    return int(np.random.SeedSequence((seed, stream, episode)).generate_state(1)[0])


class Collector:
    """Plays one environment step at a time; the whole chunk is executed open loop, and dropped when an episode ends.

    The episode in progress is known by its number and the actions so far: `load_state` replays them, so any
    environment that is reproducible from `reset(seed=)` resumes exactly.
    """

    def __init__(self, env: gymnasium.Env, *, seed: int):
        self.env, self.seed = env, seed
        self.episode, self.taken, self.queue = 0, [], []
        self.obs = self._reset()

    def _reset(self) -> np.ndarray:
        obs, _ = self.env.reset(seed=reset_seed(self.seed, TRAIN_SEEDS, self.episode))
        return obs

    def step(self, act: Act, generator: torch.Generator) -> dict:
        """Take one environment step; returns the transition as `Replay.add` takes it."""
        if not self.queue:
            self.queue = list(act(torch.as_tensor(self.obs)[None], generator)[0].cpu().numpy())
        obs, action = self.obs, self.queue.pop(0)
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        self.taken.append(action)
        ended = terminated or truncated
        row = {
            "obs": obs,
            "actions": action,
            "rewards": float(reward),
            "masks": 1.0 - float(terminated),
            "terminals": ended,
            "next_obs": self.obs,
        }
        if ended:
            self.episode, self.taken, self.queue = self.episode + 1, [], []
            self.obs = self._reset()
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, JSON-able) from which `load_state` continues."""
        size = self.env.action_space.shape
        stack = lambda actions: torch.as_tensor(np.array(actions, np.float32).reshape(-1, *size))  # noqa: E731
        return {"taken": stack(self.taken), "queue": stack(self.queue)}, {"episode": self.episode}

    def load_state(self, tensors: dict[str, Tensor], state: dict) -> None:
        self.episode, self.taken = state["episode"], list(tensors["taken"].numpy())
        self.queue = list(tensors["queue"].numpy())
        self.obs = self._reset()
        for action in self.taken:
            self.obs = self.env.step(action)[0]


class Evaluation(NamedTuple):
    success: np.ndarray  # [E] bool
    returns: np.ndarray  # [E] undiscounted
    lengths: np.ndarray  # [E] steps


def evaluate(
    act: Act, envs: list[gymnasium.Env], *, seed: int, first_episode: int, frame: Callable | None = None
) -> Evaluation:
    """One episode in each of `envs`, in lockstep so that the policy acts on all of them at once.

    Args:
        seed, first_episode: the start states are those of episodes first_episode, first_episode + 1, ... of this seed.
        frame: called with the list of environments still running after each step (videos).
    """
    n = len(envs)
    generator = torch.Generator().manual_seed(reset_seed(seed, EVAL_SEEDS, first_episode))
    obs = np.stack(
        [e.reset(seed=reset_seed(seed, EVAL_SEEDS, first_episode + i))[0] for i, e in enumerate(envs)]
    )
    running = np.ones(n, bool)
    result = Evaluation(np.zeros(n, bool), np.zeros(n), np.zeros(n, int))
    while running.any():
        alive = np.flatnonzero(running)
        chunks = act(torch.as_tensor(obs[alive]), generator).cpu().numpy()
        for j in range(chunks.shape[1]):
            for k, i in enumerate(alive):
                if not running[i]:
                    continue
                obs[i], reward, terminated, truncated, info = envs[i].step(chunks[k, j])
                result.returns[i] += reward
                result.lengths[i] += 1
                if terminated or truncated:
                    result.success[i], running[i] = bool(info["success"]), False
            if frame is not None:
                frame(envs, running)
    return result
