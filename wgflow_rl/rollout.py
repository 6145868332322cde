"""Running a chunked policy in environments: collecting transitions one at a time, and evaluating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from wgflow_rl.guard import Guard

Act = Callable[[Tensor, torch.Generator], Tensor]  # obs [B, S], generator -> chunk [B, h, A]

TRAIN_SEEDS, EVAL_SEEDS = 1, 2  # streams of reset seeds that never meet


def reset_seed(seed: int, stream: int, episode: int) -> int:
    """Seed of `env.reset` for an episode: a function of its number alone, so an episode can be played again."""
    return int(np.random.SeedSequence((seed, stream, episode)).generate_state(1)[0])


class Collector:
    """Plays one environment step at a time; the whole chunk is executed open loop, and dropped when an episode ends.

    The episode in progress is known by its number and the actions so far: `load_state` replays them, so any
    environment that is reproducible from `reset(seed=)` resumes exactly.

    Args:
        seed: of the start states.
        guard: names what goes wrong inside the environment; EnvironmentFailed.
    """

    def __init__(self, env: gymnasium.Env, *, seed: int, guard: Guard):
        self.env, self.seed, self.guard = env, seed, guard
        self.episode, self.taken, self.queue = 0, [], []
        self.obs = self._reset()

    def _reset(self) -> np.ndarray:
        self.reset_seed = reset_seed(self.seed, TRAIN_SEEDS, self.episode)
        return self.guard.reset(self.env, episode=self.episode, seed=self.reset_seed)

    def _step(self, action: np.ndarray, number: int) -> tuple:
        return self.guard.step(self.env, action, episode=self.episode, seed=self.reset_seed, step=number)

    def step(self, act: Act, generator: torch.Generator) -> dict:
        """Take one environment step; returns the transition as `Replay.add` takes it."""
        if not self.queue:
            self.queue = list(act(torch.as_tensor(self.obs)[None], generator)[0].cpu().numpy())
        obs, action = self.obs, self.queue.pop(0)
        self.obs, reward, terminated, truncated, _ = self._step(action, len(self.taken) + 1)
        self.taken.append(action)
        ended = terminated or truncated
        row = {
            "obs": obs,
            "actions": action,
            "rewards": reward,
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
        size = self.env.action_space.shape or ()
        stack = lambda actions: torch.as_tensor(np.array(actions, np.float32).reshape(-1, *size))  # noqa: E731
        return {"taken": stack(self.taken), "queue": stack(self.queue)}, {"episode": self.episode}

    def load_state(self, tensors: dict[str, Tensor], state: dict) -> None:
        self.episode, self.taken = state["episode"], list(tensors["taken"].numpy())
        self.queue = list(tensors["queue"].numpy())
        self.obs = self._reset()
        for number, action in enumerate(self.taken, start=1):
            self.obs = self._step(action, number)[0]


class Evaluation(NamedTuple):
    success: np.ndarray  # [E] bool
    returns: np.ndarray  # [E] undiscounted
    lengths: np.ndarray  # [E] steps


def evaluate(
    act: Act,
    envs: Sequence[gymnasium.Env],
    *,
    episodes: int,
    seed: int,
    first_episode: int,
    guard: Guard,
    frame: Callable[[dict[int, int]], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes on a pool of environments that step together, so the policy acts on several at once.

    Args:
        envs: the pool; each takes the next episode when its own ends.
        seed, first_episode: start states are those of episodes first_episode, first_episode + 1, ... of this seed.
        guard: names what goes wrong inside an environment; EnvironmentFailed.
        frame: called after each round of steps with the episode that each environment has just played a step of
            (videos).
    """
    generator = torch.Generator().manual_seed(reset_seed(seed, EVAL_SEEDS, first_episode))
    result = Evaluation(np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int))
    obs: list[np.ndarray] = [np.empty(0)] * len(envs)
    queues: list[list[np.ndarray]] = [[] for _ in envs]
    seeds = [0] * len(envs)
    playing: dict[int, int] = {}  # environment -> episode
    started = 0

    def start(i: int) -> None:
        nonlocal started
        seeds[i] = reset_seed(seed, EVAL_SEEDS, first_episode + started)
        obs[i] = guard.reset(envs[i], episode=first_episode + started, seed=seeds[i])
        queues[i], playing[i], started = [], started, started + 1

    for i in range(min(len(envs), episodes)):
        start(i)
    while playing:
        idle = [i for i in playing if not queues[i]]
        if idle:
            chunks = act(torch.as_tensor(np.stack([obs[i] for i in idle])), generator).cpu().numpy()
            for i, chunk in zip(idle, chunks, strict=True):
                queues[i] = list(chunk)
        stepped = dict(playing)
        for i, episode in stepped.items():
            result.lengths[episode] += 1
            obs[i], reward, terminated, truncated, info = guard.step(
                envs[i],
                queues[i].pop(0),
                episode=first_episode + episode,
                seed=seeds[i],
                step=int(result.lengths[episode]),
            )
            result.returns[episode] += reward
            if terminated or truncated:
                result.success[episode] = bool(info["success"])
                del playing[i]
        if frame is not None:
            frame(stepped)
        for i in stepped:
            if i not in playing and started < episodes:
                start(i)
    return result
