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
    """

    def __init__(self, env: str, *, timeout: float = 600.0):
        self.env, self.timeout = env, timeout
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
        return _checked(obs, float(reward), env, call), float(reward), terminated, truncated, info

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


def _checked(obs: np.ndarray, reward: float, env: gymnasium.Env, call: Call) -> np.ndarray:
    """Return a copy of `obs`. Raises: EnvironmentFailed if it or the reward is invalid."""
    wanted = env.observation_space.shape
    if np.shape(obs) != wanted or not np.isfinite(obs).all() or not np.isfinite(reward):
        came = _short(obs) if np.shape(obs) == wanted else f"of shape {np.shape(obs)}"
        raise EnvironmentFailed(
            f"the environment answered with observation {came} and reward {reward} in {call}; wanted finite numbers "
            f"and shape {wanted}."
        )
    return np.array(obs)


def _short(array: Any) -> str:
    return np.array2string(np.asarray(array), precision=6, threshold=12, max_line_width=10**6)
