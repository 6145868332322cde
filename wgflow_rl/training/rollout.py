"""Running a chunked policy in environments: collecting transitions one at a time, and evaluating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from wgflow_rl.envs import workers
from wgflow_rl.envs.guard import Guard

Act = Callable[[Tensor, torch.Generator], Tensor]  # obs [B, S], generator -> chunk [B, h, A]

TRAIN_SEEDS, EVAL_SEEDS = 1, 2  # streams of reset seeds that never meet
EVAL_ENVS = 8  # environments an evaluation plays on; an arm takes 170 MB each


def reset_seed(seed: int, stream: int, episode: int) -> int:
    """Seed of `env.reset` for an episode: a function of its number alone, so an episode can be played again."""
    return int(np.random.SeedSequence((seed, stream, episode)).generate_state(1)[0])


class Player:
    """An environment, the episode it is in, and the actions of its chunk that are still to be taken.

    One in another process (`wgflow_rl.envs.workers`) resets and steps ahead, as soon as it is known how.
    """

    def __init__(self, env: gymnasium.Env, guard: Guard):
        self.env, self.guard = env, guard

    def start(self, episode: int, seed: int) -> None:
        """Begin an episode; the last one, if it goes on, is given up."""
        self.episode, self.seed = episode, seed
        self.taken: list[np.ndarray] = []
        self.queue: list[np.ndarray] = []
        self._obs: np.ndarray | None = None
        workers.begin(self.env, seed)

    @property
    def obs(self) -> np.ndarray:
        """The present observation. Raises: EnvironmentFailed, from the reset."""
        if self._obs is None:
            self._obs = self.guard.reset(self.env, episode=self.episode, seed=self.seed)
        return self._obs

    def play(self, chunk: np.ndarray) -> None:
        """Take these actions [h, A] in the next steps."""
        self.queue = list(chunk)
        workers.play(self.env, self.queue)

    def step(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take the next action of the chunk; what the environment answers. Raises: EnvironmentFailed."""
        action, number = self.queue.pop(0), len(self.taken) + 1
        answer = self.guard.step(
            self.env, action, episode=self.episode, seed=self.seed, step=number
        )
        self._obs = answer[0]
        self.taken.append(action)
        return answer


def ask(act: Act, players: Sequence[Player], generator: torch.Generator) -> None:
    """Give a chunk to each player that has none left, all chunks from one call of the policy."""
    idle = [player for player in players if not player.queue]
    if idle:
        chunks = (
            act(torch.as_tensor(np.stack([player.obs for player in idle])), generator).cpu().numpy()
        )
        for player, chunk in zip(idle, chunks, strict=True):
            player.play(chunk)


class Collector:
    """Plays one environment step at a time; the whole chunk is executed open loop, and dropped when an episode ends.

    Several environments take turns, and a chunk is drawn for all that need one as soon as it is one of these's turn.
    Environment i of n plays episodes i, i + n, i + 2n, ...

    The episode in progress is known by its number and the actions so far: `load_state` replays them, so any
    environment that is reproducible from `reset(seed=)` resumes exactly.

    Args:
        seed: of the start states.
        guard: names what goes wrong inside the environment; EnvironmentFailed.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], *, seed: int, guard: Guard):
        self.seed, self.turn = seed, 0
        self.players = [Player(env, guard) for env in envs]
        for number, player in enumerate(self.players):
            self._start(player, number)
        for player in self.players:
            _ = player.obs  # what cannot be reset fails here, not after hours offline

    def _start(self, player: Player, episode: int) -> None:
        player.start(episode, reset_seed(self.seed, TRAIN_SEEDS, episode))

    def step(self, act: Act, generator: torch.Generator) -> dict:
        """Take one environment step; returns the transition as `Replay.add` takes it."""
        player = self.players[self.turn]
        if not player.queue:
            ask(act, self.players, generator)
        obs = player.obs
        next_obs, reward, terminated, truncated, _ = player.step()
        row = {
            "obs": obs,
            "actions": player.taken[-1],
            "rewards": reward,
            "masks": 1.0 - float(terminated),
            "terminals": terminated or truncated,
            "next_obs": next_obs,
        }
        if row["terminals"]:
            self._start(player, player.episode + len(self.players))
        self.turn = (self.turn + 1) % len(self.players)
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, JSON-able) from which `load_state` continues."""
        tensors, told = {}, {"turn": self.turn}
        for number, player in enumerate(self.players):
            size = player.env.action_space.shape or ()
            for name, actions in (("taken", player.taken), ("queue", player.queue)):
                stacked = np.array(actions, np.float32).reshape(-1, *size)
                tensors[_of(number, name)] = torch.as_tensor(stacked)
            told[_of(number, "episode")] = player.episode
        return tensors, told

    def load_state(self, tensors: dict[str, Tensor], state: dict) -> None:
        self.turn = state.get("turn", 0)
        for number, player in enumerate(self.players):
            self._start(player, state[_of(number, "episode")])
            player.play(tensors[_of(number, "taken")].numpy())
        for number, player in enumerate(self.players):
            _ = player.obs
            while player.queue:
                player.step()
            player.play(tensors[_of(number, "queue")].numpy())


def _of(number: int, name: str) -> str:
    """The name of what belongs to an environment; the first has those from before there were several."""
    return f"{name} of {number}" if number else name


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
    players = [Player(env, guard) for env in envs]
    playing: dict[int, int] = {}  # environment -> episode
    started = 0

    def start(i: int) -> None:
        nonlocal started
        number = first_episode + started
        players[i].start(number, reset_seed(seed, EVAL_SEEDS, number))
        playing[i], started = started, started + 1

    for i in range(min(len(envs), episodes)):
        start(i)
    while playing:
        ask(act, [players[i] for i in playing], generator)
        stepped = dict(playing)
        for i, episode in stepped.items():
            _, reward, terminated, truncated, info = players[i].step()
            result.lengths[episode] += 1
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
