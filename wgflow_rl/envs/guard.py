"""Environments that raise or hang: an error that names the step and the episode, and no run that waits for ever."""

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

from wgflow_rl.envs.workers import Remote
from wgflow_rl.utils.cli import UserError


class EnvironmentFailed(UserError):
    """An environment raised, or answered with something that is no observation or reward."""


class Call(NamedTuple):
    """One call of an environment, and what it takes to make it again."""

    env: str
    episode: int
    seed: int
    step: int = 0  # of the episode, from 1; 0 is its reset
    action: np.ndarray | None = None

    def __str__(self) -> str:
        begin = f"episode {self.episode} of {self.env}, reset(seed={self.seed})"
        return f"step {self.step} of {begin}, action {_short(self.action)}" if self.step else begin


class Guard:
    """Names what goes wrong inside an environment, and ends the process when a call takes longer than `timeout`.

    A hanging simulator cannot be interrupted from Python, so a thread looks at the clock; it works while the guard is
    entered (`with guard:`). What it does then is what a kill does, after saying where: the run resumes from its last
    checkpoint.

    Args:
        env: what to call the environment.
        timeout: seconds that one reset or step may take.
    """

    def __init__(self, env: str, *, timeout: float = 600.0):
        self.env, self.timeout = env, timeout
        self._playing: tuple[Call, gymnasium.Env] | None = None
        self._left = threading.Event()

    def reset(self, env: gymnasium.Env, *, episode: int, seed: int) -> np.ndarray:
        """The first observation. Raises: EnvironmentFailed."""
        call = Call(self.env, episode, seed)
        with self._named(call, env):
            obs, _ = env.reset(seed=seed)
        return _checked(obs, 0.0, env, call)

    def step(
        self, env: gymnasium.Env, action: np.ndarray, *, episode: int, seed: int, step: int
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info), as of the environment. Raises: EnvironmentFailed."""
        call = Call(self.env, episode, seed, step, action)
        with self._named(call, env):
            obs, reward, terminated, truncated, info = env.step(action)
        return _checked(obs, float(reward), env, call), float(reward), terminated, truncated, info

    @contextlib.contextmanager
    def _named(self, call: Call, env: gymnasium.Env) -> Iterator[None]:
        self._playing = call, env
        try:
            yield
        except Exception as error:
            raise EnvironmentFailed(
                f"the environment failed in {call}: {type(error).__name__}: {error}. A training run "
                "goes on from its last checkpoint with --resume, and comes to the same step again."
            ) from error
        finally:
            self._playing = None

    def __enter__(self) -> Guard:
        self._left.clear()
        threading.Thread(target=self._watch, name="environment guard", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        # Ticks of this thread, not a clock: a process that is paused (Ctrl-Z) is not one that hangs.
        tick, held, last = min(self.timeout / 10, 5.0), 0.0, None
        while not self._left.wait(tick):
            playing = self._playing
            held, last = (held + tick if playing is not None and playing is last else 0.0), playing
            if playing is not None and held > self.timeout:
                self._end(*playing)

    def _end(self, call: Call, env: gymnasium.Env) -> NoReturn:
        faulthandler.dump_traceback(2)  # on stderr: where it hangs
        if isinstance(env, Remote):
            env.process.abandon()
        print(
            f"error: the environment did not answer for {self.timeout:g} s (--env-timeout) in {call}. A training "
            "run goes on from its last checkpoint with --resume.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)


def _checked(obs: np.ndarray, reward: float, env: gymnasium.Env, call: Call) -> np.ndarray:
    wanted = env.observation_space.shape
    if np.shape(obs) != wanted or not np.isfinite(obs).all() or not np.isfinite(reward):
        came = _short(obs) if np.shape(obs) == wanted else f"of shape {np.shape(obs)}"
        raise EnvironmentFailed(
            f"the environment answered with observation {came} and reward {reward} in {call}; wanted finite numbers "
            f"and shape {wanted}."
        )
    return obs


def _short(array: Any) -> str:
    return np.array2string(np.asarray(array), precision=6, threshold=12, max_line_width=10**6)
