"""Run a chunked policy in environments: collect transitions one at a time, and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from wgflow_rl.envs.guard import Guard

Act = Callable[[Tensor, torch.Generator], Tensor]  # obs [B, S], generator -> chunk [B, h, A]

TRAIN_SEEDS, EVAL_SEEDS = 1, 2  # disjoint streams of reset seeds
EVAL_ENVS = 8  # environments per evaluation; an arm takes 170 MB each


def reset_seed(seed: int, stream: int, episode: int) -> int:
    """Return the seed of `env.reset` for an episode, a function of its number alone: episodes can be replayed."""
    return int(np.random.SeedSequence((seed, stream, episode)).generate_state(1)[0])


class Player:
    """An environment, its present episode, and the actions of its chunk that are still to be taken."""

    def __init__(self, env: gymnasium.Env, guard: Guard):
        self.env, self.guard = env, guard

    def start(self, episode: int, seed: int) -> None:
        """Begin an episode. Raises: EnvironmentFailed."""
        self.episode, self.seed = episode, seed
        self.taken: list[np.ndarray] = []
        self.queue: list[np.ndarray] = []
        self.obs = self.guard.reset(self.env, episode=episode, seed=seed)

    def step(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take the next action of the chunk and return what `Guard.step` does. Raises: EnvironmentFailed."""
        action, number = self.queue.pop(0), len(self.taken) + 1
        answer = self.guard.step(
            self.env, action, episode=self.episode, seed=self.seed, step=number
        )
        self.obs = answer[0]
        self.taken.append(action)
        return answer


def draw_chunks(act: Act, players: Sequence[Player], generator: torch.Generator) -> None:
    """Draw a chunk for each player that has none left, all of them in one call of the policy."""
    idle = [player for player in players if not player.queue]
    if idle:
        chunks = (
            act(torch.as_tensor(np.stack([player.obs for player in idle])), generator).cpu().numpy()
        )
        for player, chunk in zip(idle, chunks, strict=True):
            player.queue = list(chunk)


class Collector:
    """Takes one environment step at a time; chunks are executed open loop, and dropped when an episode ends.

    Several environments take turns: environment i of n plays episodes i, i + n, i + 2n, ... When the one whose turn
    it is needs a chunk, chunks are drawn for all that need one.

    The state of an episode in progress is its number and the actions so far. `load_state` replays them, so any
    environment that is reproducible from `reset(seed=)` resumes exactly.

    Args:
        seed: of the start states.
        guard: names failures of the environments.
    Raises:
        EnvironmentFailed: From the first resets.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], *, seed: int, guard: Guard):
        self.seed, self.turn = seed, 0
        self.players = [Player(env, guard) for env in envs]
        for number, player in enumerate(self.players):
            self._start(player, number)

    def _start(self, player: Player, episode: int) -> None:
        player.start(episode, reset_seed(self.seed, TRAIN_SEEDS, episode))

    def step(self, act: Act, generator: torch.Generator) -> dict:
        """Take one environment step; returns the transition as `Replay.add` takes it."""
        player = self.players[self.turn]
        if not player.queue:
            draw_chunks(act, self.players, generator)
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
        """Return (tensors, JSON-serialisable dict) from which `load_state` continues."""
        tensors, state = {}, {"turn": self.turn}
        for number, player in enumerate(self.players):
            size = player.env.action_space.shape or ()
            for name, actions in (("taken", player.taken), ("queue", player.queue)):
                stacked = np.array(actions, np.float32).reshape(-1, *size)
                tensors[_of(number, name)] = torch.as_tensor(stacked)
            state[_of(number, "episode")] = player.episode
        return tensors, state

    def load_state(self, tensors: dict[str, Tensor], state: dict) -> None:
        self.turn = state.get("turn", 0)
        for number, player in enumerate(self.players):
            self._start(player, state[_of(number, "episode")])
            player.queue = list(tensors[_of(number, "taken")].numpy())
            while player.queue:
                player.step()
            player.queue = list(tensors[_of(number, "queue")].numpy())


def _of(number: int, name: str) -> str:
    """Return the name under which a value of environment `number` is saved."""
    return f"{name} of {number}" if number else name


class Evaluation(NamedTuple):
    success: np.ndarray  # [E] bool
    returns: np.ndarray  # [E] undiscounted
    lengths: np.ndarray  # [E] steps
    scores: np.ndarray | None = None  # [E] final info["score"] of environments that have one

    @property
    def score(self) -> float:
        """Number by which checkpoints are compared: the mean score, or the success rate."""
        return float(np.mean(self.success if self.scores is None else self.scores))


def evaluate(
    act: Act,
    envs: Sequence[gymnasium.Env],
    *,
    episodes: int,
    seed: int,
    first_episode: int,
    guard: Guard,
    eval_seed: int | None = None,
    frame: Callable[[dict[int, int]], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes on a pool of environments that step together, so that the policy acts on batches.

    Args:
        envs: the pool; each takes the next episode when its own ends.
        seed, first_episode: start states are those of episodes first_episode, first_episode + 1, ... of this seed.
        guard: names failures of the environments.
        eval_seed: start states are instead those of reset(seed=eval_seed), reset(seed=eval_seed + 1), ...
        frame: called after each round of steps with {index of an environment: the episode it has just stepped}.

    Raises:
        EnvironmentFailed: If an environment raises or its process ends.
    """
    generator = torch.Generator().manual_seed(reset_seed(seed, EVAL_SEEDS, first_episode))
    result = Evaluation(np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int))
    scores = np.zeros(episodes)
    players = [Player(env, guard) for env in envs]
    playing: dict[int, int] = {}  # environment -> episode
    started = 0

    def start(i: int) -> None:
        nonlocal started
        number = first_episode + started
        own = reset_seed(seed, EVAL_SEEDS, number) if eval_seed is None else eval_seed + started
        players[i].start(number, own)
        playing[i], started = started, started + 1

    for i in range(min(len(envs), episodes)):
        start(i)
    while playing:
        draw_chunks(act, [players[i] for i in playing], generator)
        stepped = dict(playing)
        for i, episode in stepped.items():
            _, reward, terminated, truncated, info = players[i].step()
            result.lengths[episode] += 1
            result.returns[episode] += reward
            if terminated or truncated:
                result.success[episode] = bool(info["success"])
                scores[episode] = info.get("score", np.nan)
                del playing[i]
        if frame is not None:
            frame(stepped)
        for i in stepped:
            if i not in playing and started < episodes:
                start(i)
    return result if np.isnan(scores).all() else result._replace(scores=scores)
