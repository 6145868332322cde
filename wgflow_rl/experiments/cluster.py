"""Run jobs on Ray, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from wgflow_rl.experiments import job
from wgflow_rl.experiments.job import Job, Outcome
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.flags import at_least
from wgflow_rl.utils.processes import cores

REFRESH = 1.0  # seconds between updates of the progress bar


@dataclass(frozen=True)
class Machines:
    """Where jobs run, and what each of them takes. The fields are flags of `python -m wgflow_rl.sweep`."""

    address: str | None = None
    """Address of a Ray cluster, host:port or auto (default: this machine)."""
    cpus: int | None = None
    """Cores of this machine to use (default: all that this process may use)."""
    cpus_per_run: int = 1
    """Cores, and torch threads, per run."""
    gpus_per_run: float = 0.0
    """Accelerators per run, possibly a fraction; add --device cuda."""
    retries: int = 2
    """Number of consecutive failures without progress that a run may have."""

    def check(self) -> None:
        """Raises: ValueError naming the first invalid flag."""
        at_least(1, cpus=self.cpus, cpus_per_run=self.cpus_per_run)
        at_least(0, gpus_per_run=self.gpus_per_run, retries=self.retries)
        most = self.cpus or cores()
        if self.address is None and self.cpus_per_run > most:
            raise ValueError(
                f"--cpus-per-run is {self.cpus_per_run}; wanted at most {most}, the number of cores"
            )


THIS = Machines()


def execute(jobs: Sequence[Job], machines: Machines = THIS) -> dict[Job, Outcome]:
    """Run the jobs on Ray and return their outcomes; a job with a shared offline phase starts after it.

    Raises:
        RuntimeError: When Ray cannot start.
        KeyboardInterrupt: After every run has written its checkpoint.
    """
    outcomes: dict[Job, Outcome] = {}
    todo = job.with_offline_phases(jobs)
    steps = {each: each.steps - (each.offline.steps if each.offline else 0) for each in todo}
    with (
        connected(machines) as ray,
        tqdm(total=sum(steps.values()), unit="step", mininterval=5, smoothing=0) as bar,
    ):
        # Ray restarts a task whose worker has died; the folder's lock then waits for a training
        # left behind.
        resources = {
            "num_cpus": machines.cpus_per_run,
            "num_gpus": machines.gpus_per_run,
            "max_retries": machines.retries,
        }
        task = ray.remote(**resources)(job.execute)
        slots, waiting, pending = _slots(ray, machines), todo.copy(), {}
        try:
            while waiting or pending:
                for each in waiting.copy():
                    if len(pending) < slots and (not each.offline or each.offline in outcomes):
                        pending[task.remote(each, retries=machines.retries)] = each
                        waiting.remove(each)
                ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=REFRESH)
                for ref in ready:
                    each = pending.pop(ref)
                    outcomes[each] = _outcome(ray, ref)
                    bar.write(line(each, outcomes[each]))
                # of a run that inherits its offline phase, the steps after it
                bar.n = sum(
                    min(max(job.last_step(each.folder) - each.steps + n, 0), n)
                    for each, n in steps.items()
                )
                ended = len(outcomes.keys() & set(jobs))
                bar.set_postfix_str(f"{ended} of {len(jobs)} runs ended", refresh=False)
                bar.update(0)
        except KeyboardInterrupt:
            bar.write("stopping: every run writes a checkpoint; repeat the command to continue")
            for ref in pending:
                ray.cancel(ref)
            ray.wait(list(pending), num_returns=len(pending), timeout=job.GRACE)
            raise
    return {each: outcomes[each] for each in jobs}


@contextlib.contextmanager
def connected(machines: Machines) -> Iterator[Any]:
    """Start Ray or join a cluster, with SIGTERM treated as Ctrl-C."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # at the default, 15, other processes starve runs
    os.environ.setdefault("RAY_worker_niceness", "0")
    # --gpus-per-run 0 hides no device
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray cancels runs by SIGINT, which a shell lets its background jobs and their children ignore.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        import ray

        quiet = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
        if machines.address is None:
            quiet("local", num_cpus=machines.cpus or cores(), include_dashboard=False)
        else:
            quiet(machines.address)
    except Exception as error:  # types of Ray and of gRPC
        raise UserError(
            f"Ray could not start ({type(error).__name__}: {str(error).strip()}). {_advice(str(error))}"
        ) from error
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield ray
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _advice(message: str) -> str:
    """Return what helps against a message of Ray."""
    if "AF_UNIX" in message:
        return (
            "The path of the temporary folder is too long for Ray's sockets; set RAY_TMPDIR to a short one, such as "
            "RAY_TMPDIR=/tmp."
        )
    if "home directory" in message or ".ray" in message:
        return (
            "Ray keeps its token in ~/.ray/auth_token; set HOME to a folder that can be written to, or RAY_AUTH_TOKEN "
            "to any long random text."
        )
    if "token" in message.lower() or "authenticat" in message.lower():
        return (
            "The cluster asks for a token: set RAY_AUTH_MODE=token here, and RAY_AUTH_TOKEN or ~/.ray/auth_token to "
            "the token of its head (docs/reproduce.md)."
        )
    if "timed out" in message:
        return "This machine may be too busy to start it in time; repeat the command when it is less so."
    return (
        "It comes with pip install 'wgflow[sweep]'; on this machine it needs a writable temporary folder and loopback "
        "ports, with --address a running cluster."
    )


def _slots(ray: Any, machines: Machines) -> int:
    """Number of runs that the machine or cluster trains at once."""
    there = ray.cluster_resources()
    slots = there.get("CPU", 1) // machines.cpus_per_run
    if machines.gpus_per_run:
        slots = min(slots, there.get("GPU", 0) // machines.gpus_per_run)
    return max(1, int(slots))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _outcome(ray: Any, ref: Any) -> Outcome:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:  # worker or machine lost more often than --retries
        return Outcome("failed", str(error).strip().partition("\n")[0])


def line(each: Job, outcome: Outcome) -> str:
    """State and folder of a job that has ended, and where its error is logged."""
    logs = [part.folder / "train.log" for part in (each, each.offline) if part]
    log = next((path for path in logs if path.exists()), logs[0])  # that of a phase that diverged
    tail = f": {outcome.error} (see {log})" if outcome.error else ""
    return f"{outcome.state:8} {each.folder.name}{tail}"
