"""One training run in a folder of its own: locked, retried from its last checkpoint, and its state written down.

Files of a run::

    .sweep.lock    held while a process works here, and let go of by the kernel however that process ends
    sweep.json     how the last attempt ended: {"state": "done" | "failed" | "diverged", "error": ..., "attempts": ...}
    train.log      what the training printed

Only the standard library is imported here: a worker process on another machine starts in no time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from wgflow_rl.utils.files import write_whole
from wgflow_rl.utils.threads import THREADS

State = Literal["new", "started", "done", "failed", "diverged"]

TRAIN = ("-m", "wgflow_rl.train")
# How TrainingDiverged speaks. A resumed run repeats exactly, and would say it again.
DIVERGED = "is not finite at step"
GRACE = 300.0  # seconds that a stopped training gets for the step or the evaluation in progress, and its checkpoint
POLL = 0.2


@dataclass(frozen=True)
class Job:
    """What to run, and where."""

    folder: Path
    flags: tuple[str, ...]  # of `python -m wgflow_rl.train`, without --run-dir and --threads
    steps: int
    threads: int = 1
    program: tuple[str, ...] = field(
        default_factory=lambda: TRAIN
    )  # arguments of the Python that runs it


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: State
    error: str = ""
    attempts: int = 0  # processes started, by this sweep


def state(folder: Path) -> Outcome:
    """State of a run, read from its folder."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Outcome(**json.loads((folder / "sweep.json").read_text(encoding="utf-8")))
    return Outcome("started" if (folder / "config.json").exists() else "new")


def last_step(folder: Path) -> int:
    """The step of the last whole row of train.csv or eval.csv, 0 without one."""
    steps = [0]
    for name in ("train.csv", "eval.csv"):
        with contextlib.suppress(OSError, ValueError), (folder / name).open("rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 4096))
            whole = file.read().rpartition(b"\n")[0]
            steps.append(int(whole.rpartition(b"\n")[2].partition(b",")[0]))
    return max(steps)


def execute(job: Job, *, retries: int, pause: float = 5.0) -> Outcome:
    """Bring a job to its end, unless it is there already, and say how it ended.

    A failed process is started again from the last checkpoint, `retries` times without progress in between. A diverged
    one is not: its resumed run would repeat it. If another process is at work in the folder (one that a killed sweep
    has left behind), this waits for it. Never raises for what happens to the run: a full disk is an outcome.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with _alone(job.folder) as lock:
            before = state(job.folder)
            if before.state in ("done", "diverged"):
                return before
            outcome = _attempts(job, lock, retries, pause)
            write_whole(job.folder / "sweep.json", json.dumps(asdict(outcome)) + "\n")
            return outcome
    except OSError as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _attempts(job: Job, lock: TextIO, retries: int, pause: float) -> Outcome:
    left, attempts = retries, 0
    while True:
        reached = _newest(job.folder)
        attempts += 1
        code, error = _train(job, lock)
        if code == 0:
            return Outcome("done", attempts=attempts)
        if DIVERGED in error:
            return Outcome("diverged", error, attempts)
        left = retries if _newest(job.folder) != reached else left - 1
        if left < 0:
            return Outcome("failed", error, attempts)
        time.sleep(pause)


def _train(job: Job, lock: TextIO) -> tuple[int, str]:
    """One process: its exit code, and what it said last if that is not 0."""
    command = [sys.executable, *job.program]
    threads = str(job.threads)
    if (job.folder / "config.json").exists():
        command += ["--resume", str(job.folder), "--threads", threads]
    else:
        command += [*job.flags, "--run-dir", str(job.folder), "--threads", threads]
    with (job.folder / "train.log").open("a", encoding="utf-8") as log:
        begin = log.tell()
        # The lock's descriptor goes along: a training whose sweep was killed still holds its folder. A session of its
        # own keeps the terminal's Ctrl-C away: the sweep asks it to stop, and waits for its checkpoint.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict.fromkeys(THREADS, threads),
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)  # short sleeps: a cancelled task is interrupted between them
        finally:
            _end(process)
    return process.returncode, _last_words(job.folder / "train.log", begin, process.returncode)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(log: Path, begin: int, code: int) -> str:
    if code < 0:
        return f"ended by signal {-code}" + (" (killed: out of memory?)" if code == -9 else "")
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")


def _newest(folder: Path) -> str:
    return max((path.name for path in (folder / "checkpoints").glob("step-*")), default="")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[TextIO]:
    with (folder / ".sweep.lock").open("a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
        yield file
