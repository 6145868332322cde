"""The other end of `wgflow_rl.envs.workers`: a process that makes environments and answers for them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from wgflow_rl.envs.processes import Failure, answered, attach

Make = Callable[[], gymnasium.Env]


class Reset(NamedTuple):
    """Begin an episode; what was asked before it is no longer wanted."""

    episode: int  # of this environment, counted from 1
    seed: int | None


class Step(NamedTuple):
    """One action of an episode; nothing is done, nor answered, where it has ended."""

    episode: int
    action: np.ndarray


def serve() -> None:
    """Make the environments and answer for them until the other side is gone; run by `processes.Served`."""
    connections, make = attach()
    hosts = [_Host(connection, make) for connection in connections]
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            busy = any(host.todo for host in hosts)
            ready = wait(connections, timeout=0 if busy else None)
            for host in hosts:  # one step of each, so that they go on side by side
                if host.connection in ready:
                    host.listen()
                host.work()


class _Host:
    """One environment, and what it is still to do."""

    def __init__(self, connection: Connection, make: Make) -> None:
        self.connection = connection
        self.todo: deque[Reset | Step] = deque()
        self.going = False  # in an episode that has not ended
        self._try(0, lambda: self._make(make))

    def _make(self, make: Make) -> tuple[gymnasium.Space, gymnasium.Space]:
        self.env = make()
        return self.env.observation_space, self.env.action_space

    def listen(self) -> None:
        message = self.connection.recv()
        if isinstance(message, Reset):
            self.todo.clear()
        self.todo.append(message)

    def work(self) -> None:
        """The next thing to do, if there is any."""
        if not self.todo:
            return
        message = self.todo.popleft()
        if isinstance(message, Reset):
            self.going = True
            self._try(message.episode, lambda: _slim(*self.env.reset(seed=message.seed)))
        elif self.going:
            answer = self._try(message.episode, lambda: _slim(*self.env.step(message.action)))
            self.going = answer is not None and not (answer[2] or answer[3])

    def _try(self, episode: int, call: Callable[[], tuple]) -> tuple | None:
        """Answer with what the call gives, or with its exception; the answer, if it is none."""
        answer = answered(call)
        self.connection.send((episode, answer))
        if isinstance(answer, Failure):
            self.going = False
            return None
        return answer


def _slim(*answer: Any) -> tuple:
    """What an environment answers, with no more of info than is used: it can be as large as the simulator's state."""
    *rest, info = answer
    return *rest, {"success": info["success"]} if "success" in info else {}
