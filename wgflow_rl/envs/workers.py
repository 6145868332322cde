"""Environments in processes of their own, which step ahead through actions that are known in advance.

A chunk is executed open loop: once it is drawn, nothing that is learned changes the steps it takes. `play` hands it
over whole, and `step` fetches the answer to one action, waiting for it if need be. So the environments' work and the
learner's overlap, while every number and its order stay those of environments in this process.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from wgflow_rl.envs.host import Make, Reset, Step
from wgflow_rl.envs.processes import Failure, Served, dealt

AHEAD = (
    32  # actions handed over at a time: their answers fit into a pipe, so none waits for room in it
)


@contextlib.contextmanager
def environments(make: Make, count: int, *, processes: int = 0) -> Iterator[list[gymnasium.Env]]:
    """`count` environments for the time of a `with` block, dealt to so many processes; 0: they live in this one.

    Args:
        make: with processes, something that pickle finds by its name, such as partial(envs.make, name).
    Raises: what `make` raises; ProcessEnded.
    """
    if processes == 0:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(contextlib.closing(make())) for _ in range(count)]
        return
    with dealt("wgflow_rl.envs.host", count, processes=processes, first=make) as pairs:
        envs = [Remote(connection, process) for connection, process in pairs]
        for env in envs:
            env.wait_until_made()
        yield [*envs]


def begin(env: gymnasium.Env, seed: int) -> None:
    """Say which reset comes next: an environment elsewhere begins it now."""
    if isinstance(env, Remote):
        env.begin(seed)


def play(env: gymnasium.Env, actions: Sequence[np.ndarray]) -> None:
    """Say which steps come next, as far as the episode goes: an environment elsewhere begins them now."""
    if isinstance(env, Remote):
        env.play(actions)


class Remote(gymnasium.Env):
    """An environment in another process; of `info` only "success" is brought over."""

    def __init__(self, connection: Connection, process: Served) -> None:
        self._connection, self.process = connection, process
        self._episode = 0
        self._begun: int | None = None  # seed of a reset that was asked for
        self._asked: deque[np.ndarray] = deque()  # actions handed over, not yet answered
        self._later: deque[np.ndarray] = (
            deque()
        )  # actions to hand over when some of those have been

    def wait_until_made(self) -> None:
        """Raises: what making it raised there; ProcessEnded."""
        self.observation_space, self.action_space = self._answer()

    def begin(self, seed: int | None) -> None:
        self._episode, self._begun = self._episode + 1, seed
        self._asked.clear()
        self._later.clear()
        self._tell(Reset(self._episode, seed))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if self._begun is None or self._begun != seed:
            self.begin(seed)
        self._begun = None
        return self._answer()

    def play(self, actions: Sequence[np.ndarray]) -> None:
        self._later.extend(np.array(action) for action in actions)
        self._hand_over()

    def step(self, action: Any):
        if not self._asked:
            self.play([action])
        if not np.array_equal(action, self._asked[0]):
            raise ValueError(
                f"the next action was to be {self._asked[0]}, but {action} is asked for"
            )
        answer = self._answer()
        self._asked.popleft()
        self._hand_over()
        return answer

    def _hand_over(self) -> None:
        while self._later and len(self._asked) < AHEAD:
            self._asked.append(self._later.popleft())
            self._tell(Step(self._episode, self._asked[-1]))

    def _tell(self, message: Reset | Step) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says so
            self._connection.send(message)

    def _answer(self) -> Any:
        episode = None
        while episode != self._episode:  # an episode that is no longer wanted may have left answers
            try:
                episode, answer = self._connection.recv()
            except (EOFError, OSError):  # none, or half of one
                raise self.process.ended("the environment") from None
        if isinstance(answer, Failure):
            raise answer.error()
        return answer
