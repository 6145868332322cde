"""Processes of this Python that serve the one that starts them, and end with it however it ends."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, Self

from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.threads import THREADS

# Not multiprocessing's spawn, which would import the main module, and torch with it, in each process. SIGTERM is not
# for it: what stops a whole job (Slurm, systemd) sends it to each process, and the run still needs this one's answers.
START = """import json, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from {} import serve
serve()"""


class ProcessEnded(UserError):
    """A process that was to serve is gone."""


class Served:
    """A process that runs `serve()` of a module of this package, for the time of a `with` block.

    Args:
        module: its name, such as "wgflow_rl.envs.host".
        pipes: how many connections there are to it.
        first: what it is given to begin with; something that pickle finds by its name, such as a partial of a function.
    Raises: what pickle raises about `first`, before there is a process.
    """

    def __init__(self, module: str, *, pipes: int, first: object) -> None:
        here, there = zip(*(Pipe() for _ in range(pipes)), strict=True)
        self._first = pickle.dumps(first)
        read, self._lifeline = os.pipe()
        given = [read, *(connection.fileno() for connection in there)]
        self.connections: tuple[Connection, ...] = here
        self._process = subprocess.Popen(
            [sys.executable, "-c", START.format(module), json.dumps(sys.path), *map(str, given)],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            env=os.environ | dict.fromkeys(THREADS, "1"),
            start_new_session=True,  # Ctrl-C reaches a whole group: the run alone decides what follows from it
        )
        os.close(read)
        for connection in there:
            connection.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def abandon(self) -> None:
        """End it at once; it first says on stderr where it is."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        self._process.kill()

    def ended(self, what: str) -> ProcessEnded:
        """The error to raise when it no longer answers: how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code is not None and code < 0:
            how = signal.Signals(-code).name
            hint = "; was there no memory left?" if how == "SIGKILL" else ""
        else:
            how, hint = f"exit code {code}", "; what it said of it stands above"
        return ProcessEnded(f"the process of {what} has ended ({how}{hint})")

    def __enter__(self) -> Self:
        with contextlib.suppress(BrokenPipeError):
            self.connections[0].send_bytes(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lifeline)
        for connection in self.connections:
            connection.close()
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def dealt(
    module: str, count: int, *, processes: int, first: object
) -> Iterator[list[tuple[Connection, Served]]]:
    """`count` connections, each with its process, dealt in turn to so many processes, or fewer if there are fewer."""
    processes = min(processes, count)
    with contextlib.ExitStack() as stack:
        shares = [len(range(p, count, processes)) for p in range(processes)]
        served = [stack.enter_context(Served(module, pipes=share, first=first)) for share in shares]
        turns = [(served[i % processes], i // processes) for i in range(count)]
        yield [(process.connections[pipe], process) for process, pipe in turns]


# ---- at the other end --------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """An exception, as it is told to the other process."""

    kind: str
    text: str
    trace: str

    def error(self) -> RuntimeError:
        """An exception that looks like the one that was raised."""
        error = type(self.kind, (UserError,), {})(self.text)
        error.add_note(self.trace)
        return error


def attach() -> tuple[list[Connection], Any]:
    """The pipes of this process, and what it is given first. It ends when the other one does."""
    lifeline, *sockets = map(int, sys.argv[2:])
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_end_with, args=[lifeline], daemon=True).start()
    connections = [Connection(socket) for socket in sockets]
    try:
        return connections, pickle.loads(connections[0].recv_bytes())
    except (EOFError, ConnectionError):  # the other one ended before it said anything
        raise SystemExit(1) from None


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written: this returns when the other end is gone
    os._exit(1)


def answered(call: Callable[[], Any]) -> Any:
    """What a call gives, or its exception as a Failure."""
    import traceback

    try:
        return call()
    except Exception as error:
        return Failure(type(error).__name__, str(error), traceback.format_exc())
