"""Environments that raise, hang or answer with something invalid: errors that name the episode and the step."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import gymnasium
import numpy as np

from wgflow_rl.utils.cli import UserError

LONGEST = 100_000  # steps of an episode; the suites' own limits are 4,000 and less


class EnvironmentFailed(UserError):
    """An environment raised, or returned an invalid observation or reward."""


class Call(NamedTuple):
    """One call of an environment, with what it takes to repeat it."""

    env: str
    episode: int
    seed: int
    step: int = 0  # of the episode, from 1; 0 is its reset
    action: np.ndarray | None = None

    def __str__(self) -> str:
        reset = f"episode {self.episode} of {self.env}, reset(seed={self.seed})"
        return f"step {self.step} of {reset}, action {_short(self.action)}" if self.step else reset


class Guard:
    """Resets and steps environments, and names the call that fails.

    Observations are copied, because an environment may overwrite the array it returned.

    While the guard is entered (`with guard:`), a call that takes longer than `timeout` ends the process with exit
    code 2: a hanging simulator cannot be interrupted from Python. The run resumes from its last checkpoint.

    Args:
        env: name of the environment in messages.
        timeout: seconds that one reset or step may take.
        longest: steps that an episode may take.
    """

    def __init__(self, env: str, *, timeout: float = 600.0, longest: int = LONGEST):
        self.env, self.timeout, self.longest = env, timeout, longest
        self._call: Call | None = None  # in progress
        self._left = threading.Event()

    def reset(self, env: gymnasium.Env, *, episode: int, seed: int) -> np.ndarray:
        """Return a copy of the first observation. Raises: EnvironmentFailed."""
        call = Call(self.env, episode, seed)
        with self._watching(call):
            obs, _ = env.reset(seed=seed)
        return _checked(obs, 0.0, env, call)

    def step(
        self, env: gymnasium.Env, action: np.ndarray, *, episode: int, seed: int, step: int
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return (copy of the observation, reward, terminated, truncated, info). Raises: EnvironmentFailed."""
        call = Call(self.env, episode, seed, step, action)
        with self._watching(call):
            obs, reward, terminated, truncated, info = env.step(action)
        obs, ended = _checked(obs, reward, env, call), bool(terminated or truncated)
        if step >= self.longest and not ended:
            raise EnvironmentFailed(
                f"the environment has not ended its episode in {call}: an evaluation would never end. Wrap it in "
                "gymnasium.wrappers.TimeLimit, or register it with limit=STEPS."
            )
        return obs, float(reward), terminated, truncated, info

    @contextlib.contextmanager
    def _watching(self, call: Call) -> Iterator[None]:
        self._call = call
        try:
            yield
        except Exception as error:
            raise EnvironmentFailed(
                f"the environment failed in {call}: {type(error).__name__}: {error}. A training run "
                "goes on from its last checkpoint with --resume, and comes to the same step again."
            ) from error
        finally:
            self._call = None

    def __enter__(self) -> Guard:
        self._left.clear()
        threading.Thread(target=self._watch, name="environment guard", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        # Count ticks of this thread, not clock time: a process that is paused (Ctrl-Z) does not hang.
        tick, held, last = min(self.timeout / 10, 5.0), 0.0, None
        while not self._left.wait(tick):
            call = self._call
            held, last = (held + tick if call is not None and call is last else 0.0), call
            if call is not None and held > self.timeout:
                self._exit(call)

    def _exit(self, call: Call) -> NoReturn:
        print(
            f"error: the environment did not answer for {self.timeout:g} s (--env-timeout) in {call}. A training "
            "run goes on from its last checkpoint with --resume. Stacks of all threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(2)
        os._exit(2)


def _checked(obs: Any, reward: Any, env: gymnasium.Env, call: Call) -> np.ndarray:
    """Return a copy of `obs` in the type of its space. Raises: EnvironmentFailed if it or the reward is invalid."""
    space = env.observation_space
    try:
        array = np.array(obs, dtype=space.dtype)
        valid = array.shape == space.shape and np.isfinite(array).all() and np.isfinite(reward)
    except (TypeError, ValueError):  # a dictionary, None, lists of unequal lengths, reward None
        array, valid = np.array(None), False
    if not valid:
        came = _short(array) if array.shape == space.shape else _kind(obs)
        raise EnvironmentFailed(
            f"the environment answered with observation {came} and reward {reward} in {call}; wanted finite numbers "
            f"and shape {space.shape}."
        )
    return array


def _kind(obs: Any) -> str:
    return (
        f"of shape {obs.shape}" if isinstance(obs, np.ndarray) else f"of type {type(obs).__name__}"
    )


def _short(array: Any) -> str:
    return np.array2string(np.asarray(array), precision=6, threshold=12, max_line_width=10**6)
