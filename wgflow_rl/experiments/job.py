"""A training run as a job: locked folder, retries from the last checkpoint, recorded outcome.

Files::

    .sweep.lock    file lock of the process at work, released by the kernel when it ends
    sweep.json     outcome {"state": "done" | "failed" | "diverged", "error": ..., "attempts": ...}
    train.log      output of the training

Only the standard library is imported, so that worker processes start fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from wgflow_rl.utils.files import open_to_append, write_whole

State = Literal["new", "started", "done", "failed", "diverged"]

TRAIN = ("-m", "wgflow_rl.train")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # of a child process
# Message of TrainingDiverged. Resumed runs repeat exactly, so a retry would diverge again.
DIVERGED = "is not finite at step"
# seconds for a stopped training to finish its step or evaluation and write a checkpoint
GRACE = 300.0
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """A run: folder, flags and number of steps."""

    folder: Path
    flags: tuple[str, ...]  # flags of train, without --run-dir and --threads
    steps: int
    threads: int = 1
    program: tuple[str, ...] = field(default_factory=lambda: TRAIN)  # arguments of python
    offline: Job | None = None  # the offline phase that it shares with other jobs


@dataclass(frozen=True)
class Outcome:
    """State of a job."""

    state: State
    error: str = ""
    attempts: int = 0  # number of processes started by this sweep


def with_offline_phases(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and the offline phases that they share, each before the first job that starts from it."""
    return list(dict.fromkeys(part for each in jobs for part in (each.offline, each) if part))


def state(folder: Path) -> Outcome:
    """Read the state of a run folder."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Outcome(**json.loads((folder / "sweep.json").read_text(encoding="utf-8")))
    return Outcome("started" if (folder / "config.json").exists() else "new")


def last_step(folder: Path) -> int:
    """Step of the last complete row of train.csv or eval.csv; 0 if there is none."""
    steps = [0]
    for name in ("train.csv", "eval.csv"):
        with contextlib.suppress(OSError, ValueError), (folder / name).open("rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 4096))
            whole = file.read().rpartition(b"\n")[0]
            steps.append(int(whole.rpartition(b"\n")[2].partition(b",")[0]))
    return max(steps)


def execute(job: Job, *, retries: int, pause: float = 5.0) -> Outcome:
    """Run a job to its end and return the outcome; a finished job is not run again.

    A failed process is restarted from the last checkpoint, unless it diverged, which a resumed run
    would repeat; so would a job whose shared offline phase diverged. If another process works in
    the folder (left by a killed sweep), this waits for it. Failures of the run, such as a full
    disk, are outcomes, not exceptions.

    Args:
        job: the run.
        retries: number of consecutive failures without progress before giving up.
        pause: seconds between attempts.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(job.folder) as lock:
            before = state(job.folder)
            if before.state in ("done", "diverged"):
                return before
            phase = state(job.offline.folder) if job.offline else before
            outcome = phase if phase.state == "diverged" else _attempts(job, lock, retries, pause)
            write_whole(job.folder / "sweep.json", json.dumps(asdict(outcome)) + "\n")
            return outcome
    except OSError as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _attempts(job: Job, lock: TextIO, retries: int, pause: float) -> Outcome:
    left, attempts = retries, 0
    while True:
        reached = _newest_checkpoint(job.folder)
        attempts += 1
        code, error = _train(job, lock)
        if code == 0:
            return Outcome("done", attempts=attempts)
        if DIVERGED in error:
            return Outcome("diverged", error, attempts)
        left = retries if _newest_checkpoint(job.folder) != reached else left - 1
        if left < 0:
            return Outcome("failed", error, attempts)
        time.sleep(pause)


def _train(job: Job, lock: TextIO) -> tuple[int, str]:
    """Run one process; return its exit code and, if that is not 0, its error message."""
    command = [sys.executable, *job.program]
    # The rounding of sums depends on the number of threads, so a resumed run keeps that of its config.json.
    threads = _stored_threads(job.folder) or job.threads
    if (job.folder / "config.json").exists():
        command += ["--resume", str(job.folder)]
    else:
        command += [*job.flags, "--run-dir", str(job.folder)]
        if job.offline is not None and state(job.offline.folder).state == "done":
            command += ["--offline-run", str(job.offline.folder)]  # else it trains its own
    command += ["--threads", str(threads)]
    with open_to_append(job.folder / "train.log") as log:
        if threads != job.threads:
            log.write(
                f"warning: this run began with {threads} threads and keeps them, for equal numbers; the sweep reserves "
                f"{job.threads} (--cpus-per-run)\n"
            )
            log.flush()
        begin = log.tell()
        # The process inherits the lock, so a training whose sweep was killed still holds its
        # folder. In its own session it does not receive Ctrl-C from the terminal: the sweep
        # terminates it and waits for its checkpoint.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict.fromkeys(THREADS, str(threads)),
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)  # short, since Ray cancels tasks between bytecodes only
        finally:
            _terminate(process)
    return process.returncode, _error_message(job.folder / "train.log", begin, process.returncode)


def _stored_threads(folder: Path) -> int | None:
    """Number of threads that a run has stored; None before its start."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        threads = stored["settings"]["machine"]["threads"]
        return threads if isinstance(threads, int) and threads > 0 else None
    return None


def _terminate(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _error_message(log: Path, begin: int, code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")


def _newest_checkpoint(folder: Path) -> str:
    return max((path.name for path in (folder / "checkpoints").glob("step-*")), default="")


@contextlib.contextmanager
def _exclusive_lock(folder: Path) -> Iterator[TextIO]:
    with open_to_append(folder / ".sweep.lock") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
        yield file
