"""Check an environment before it is trained on, in the spirit of Stable-Baselines3's `check_env`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from wgflow_rl.envs.guard import LONGEST


def check(env: gymnasium.Env, *, longest: int = LONGEST) -> None:
    """Play two episodes of random actions with one seed and compare them with what training relies on.

    `envs.register` converts some environments that do not pass by themselves: it scales bounded actions to [-1, 1],
    adds a time limit and `info["success"]`. Check what `envs.make` returns.

    Args:
        env: environment.
        longest: steps after which an episode counts as endless.

    Raises:
        ValueError: The message has one line per fault: spaces, observations, rewards, success, episodes that do not
            end or do not repeat.
    """
    if faults := list(_space_faults(env)) or list(_episode_faults(env, longest)):
        raise ValueError("\n- ".join([f"the environment {env} cannot be trained on:", *faults]))


def _space_faults(env: gymnasium.Env) -> Iterator[str]:
    seen, acts = env.observation_space, env.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        yield (
            f"the observation space is {seen}; wanted a Box of one axis. gymnasium.wrappers.FlattenObservation "
            "makes one"
        )
    elif seen.dtype != np.float32:
        yield f"observations are {seen.dtype}; wanted float32. gymnasium.wrappers.DtypeObservation converts them"
    if not isinstance(acts, Box) or len(acts.shape) != 1:
        yield f"the action space is {acts}; wanted a Box of one axis"
    elif (acts.low != -1).any() or (acts.high != 1).any():
        yield (
            f"actions are in [{acts.low.min():g}, {acts.high.max():g}]; wanted [-1, 1] in every entry. "
            "gymnasium.wrappers.RescaleAction(env, -1, 1) converts bounded ones"
        )


def _episode_faults(env: gymnasium.Env, longest: int) -> Iterator[str]:
    first, faults = _play(env, longest)
    yield from faults
    if faults:
        return
    second, _ = _play(env, longest)
    for step, (one, two) in enumerate(zip(first, second, strict=False)):
        if not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)):
            yield (
                f"two episodes with reset(seed=0) and equal actions differ at step {step}; a run could not be resumed. "
                "Draw from self.np_random alone, and reset all state"
            )
            return
    if len(first) != len(second):
        yield (
            f"two episodes with reset(seed=0) and equal actions have {len(first) - 1} and {len(second) - 1} steps"
        )


def _play(env: gymnasium.Env, longest: int) -> tuple[list[tuple[Any, ...]], list[str]]:
    """(observation, reward, end) of each step of an episode, and its faults."""
    space: Any = env.action_space
    rng, low, high = np.random.default_rng(0), space.low, space.high
    answer, faults = _call(lambda: env.reset(seed=0), "reset(seed=0)", "(observation, info)", 2)
    if faults:
        return [], faults
    faults, rows = _observation_faults(answer[0], env, "reset"), [_copied(answer[0], 0.0, False)]
    ended = False
    while not ended and not faults and len(rows) <= longest:
        action = rng.uniform(low, high).astype(env.action_space.dtype)
        answer, faults = _call(
            lambda action=action: env.step(action),
            f"step({action})",
            "(observation, reward, terminated, truncated, info)",
            5,
        )
        if faults:
            break
        obs, reward, terminated, truncated, _ = answer
        faults = _observation_faults(obs, env, "step") + _answer_faults(*answer[1:])
        if not faults:
            ended = bool(terminated or truncated)
            rows.append(_copied(obs, reward, ended))
    if not ended and not faults:
        faults.append(
            f"an episode of random actions has not ended after {longest:,} steps; wrap the environment in "
            "gymnasium.wrappers.TimeLimit, or register it with limit=STEPS"
        )
    return rows, faults


def _call(call: Callable[[], Any], what: str, wanted: str, length: int) -> tuple[Any, list[str]]:
    try:
        answer = call()
    except Exception as error:  # whatever the environment raises
        return None, [f"{what} raises {type(error).__name__}: {error}"]
    if not isinstance(answer, tuple) or len(answer) != length:
        return None, [f"{what} returns {type(answer).__name__}; wanted {wanted}"]
    return answer, []


def _observation_faults(obs: Any, env: gymnasium.Env, call: str) -> list[str]:
    space = env.observation_space
    if not isinstance(obs, np.ndarray) or obs.dtype != space.dtype or obs.shape != space.shape:
        came = f"{obs.dtype} {obs.shape}" if isinstance(obs, np.ndarray) else type(obs).__name__
        return [
            f"{call} returns an observation that is {came}; its space has {space.dtype} {space.shape}"
        ]
    return [] if np.isfinite(obs).all() else [f"{call} returns an observation with NaN or infinity"]


def _answer_faults(reward: Any, terminated: Any, truncated: Any, info: Any) -> list[str]:
    faults = []
    if not isinstance(reward, int | float | np.number) or not np.isfinite(reward):
        faults.append(f"step returns the reward {reward!r}; wanted a finite number")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | np.bool_):
            faults.append(f"step returns {name}={value!r}; wanted a bool")
    if not isinstance(info, dict) or "success" not in info:
        faults.append(
            "info has no 'success', by which evaluations count; register the environment with success=, a function"
        )
    return faults


def _copied(obs: Any, reward: float, ended: bool) -> tuple[np.ndarray, float, bool]:
    return np.array(obs), float(reward), ended  # environments may reuse the array
