"""Many runs, each once, on Ray: `python -m wgflow_rl.sweep --methods dfp --envs ENV --seeds 3 [--dry-run]`.

    python -m wgflow_rl.sweep --table 1 --seeds 5 --dry-run              # which runs, and how many hours
    python -m wgflow_rl.sweep --methods dfp --envs ENV --seeds 3 --offline-steps 2000

Unknown flags go to `python -m wgflow_rl.train`. The same command, given again, goes on: finished runs are skipped,
stopped ones resumed, failed ones tried again. Ctrl-C leaves a checkpoint in every run.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from wgflow_rl.experiments import job, plan, stopwatch
from wgflow_rl.experiments.job import Job, Outcome
from wgflow_rl.utils.cli import UserError, one_line_errors

REFRESH = 1.0  # seconds between looks at the runs


@dataclass(frozen=True)
class Ask:
    """Run a table of the paper, or methods x environments x seeds. Other flags are passed on to train."""

    table: int | None = None
    """A table of the paper: 1, 2, 3, 4, 6 or 7."""
    methods: tuple[str, ...] = ()
    envs: tuple[str, ...] = ()
    seeds: int = 5
    """How many: 0, 1, ..., N - 1."""
    preset: str | None = None
    """Of train. Without it: the paper's for a table, laptop otherwise."""
    runs: Path = Path("runs/sweep")
    """Where the run folders are made; on a cluster, a folder that all machines share."""
    address: str | None = None
    """Of a Ray cluster (host:port, or auto). Without it: this machine."""
    cpus: int | None = None
    """Cores of this machine to use (default: all)."""
    cpus_per_run: int = 1
    """Cores, and threads of torch, for each run."""
    gpus_per_run: float = 0.0
    """Accelerators for each run (a share of one is possible); beside it, --device cuda."""
    retries: int = 2
    """How often a run may fail without progress in between."""
    dry_run: bool = False
    """Print the runs and an estimate of hours, and stop."""

    def check(self) -> Ask:
        """Raises: ValueError naming the first flag that cannot be used."""
        if (self.table is None) == (not self.methods and not self.envs):
            raise ValueError("wanted either --table N, or --methods and --envs")
        if self.table is None and not (self.methods and self.envs):
            raise ValueError("--methods and --envs go together; give at least one of each")
        for name, value, least in (
            ("seeds", self.seeds, 1),
            ("cpus", self.cpus, 1),
            ("cpus-per-run", self.cpus_per_run, 1),
            ("gpus-per-run", self.gpus_per_run, 0),
            ("retries", self.retries, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; wanted at least {least}")
        cores = self.cpus or os.cpu_count() or 1
        if self.address is None and self.cpus_per_run > cores:
            raise ValueError(
                f"--cpus-per-run is {self.cpus_per_run}; wanted at most the {cores} cores to use"
            )
        return self

    def plan(self, extra: Sequence[str]) -> plan.Plan:
        if self.table is not None:
            return plan.of_table(self.table, preset=self.preset, extra=extra)
        return plan.of_names(self.methods, self.envs, preset=self.preset or "laptop", extra=extra)


def jobs_of(ask: Ask, kinds: Sequence[plan.Kind]) -> dict[Job, plan.Kind]:
    """Each configuration once, first seeds first: every cell of a table has one run before any has two."""
    found: dict[Path, tuple[Job, plan.Kind]] = {}
    for seed in range(ask.seeds):
        for kind in kinds:
            each = kind.job(ask.runs, seed, threads=ask.cpus_per_run)
            found.setdefault(each.folder, (each, kind))
    return dict(found.values())


def execute(jobs: Sequence[Job], ask: Ask) -> dict[Job, Outcome]:
    """Run the jobs on Ray and return how each ended.

    Raises: RuntimeError when Ray cannot start; KeyboardInterrupt after every run has written its checkpoint.
    """
    outcomes: dict[Job, Outcome] = {}
    total = sum(each.steps for each in jobs)
    with _ray(ask) as ray, tqdm(total=total, unit="step", mininterval=5, smoothing=0) as bar:
        # Ray starts a task again whose worker has died; the folder's lock then waits for a training left behind.
        resources = {
            "num_cpus": ask.cpus_per_run,
            "num_gpus": ask.gpus_per_run,
            "max_retries": ask.retries,
        }
        task = ray.remote(**resources)(job.execute)
        pending = {task.remote(each, retries=ask.retries): each for each in jobs}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=REFRESH)
                for ref in ready:
                    each = pending.pop(ref)
                    outcomes[each] = _outcome(ray, ref)
                    bar.write(_line(each, outcomes[each]))
                bar.n = sum(min(job.last_step(each.folder), each.steps) for each in jobs)
                bar.set_postfix_str(f"{len(outcomes)} of {len(jobs)} runs ended", refresh=False)
                bar.update(0)
        except KeyboardInterrupt:
            bar.write(
                "stopping: every run writes a checkpoint first; the same command goes on from there"
            )
            for ref in pending:
                ray.cancel(ref)
            ray.wait(list(pending), num_returns=len(pending), timeout=job.GRACE)
            raise
    return outcomes


@contextlib.contextmanager
def _ray(ask: Ask) -> Iterator[Any]:
    """Ray, started here or joined by its address, with SIGTERM treated as Ctrl-C."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # not 15: beside other work a run would stand still
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # --gpus-per-run 0 hides no device
    try:
        import ray

        quiet = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
        if ask.address is None:
            quiet("local", num_cpus=ask.cpus, include_dashboard=False)
        else:
            quiet(ask.address)
    except Exception as error:  # Ray raises types of its own, and those of gRPC
        raise UserError(
            f"Ray could not start ({type(error).__name__}: {error}). It comes with pip install 'wgflow[sweep]'; on "
            "this machine it needs a writable temporary folder and loopback ports, with --address a running cluster."
        ) from error
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield ray
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _outcome(ray: Any, ref: Any) -> Outcome:
    try:
        return ray.get(ref)
    except (
        ray.exceptions.RayError
    ) as error:  # the worker or its machine is gone, more often than --retries
        return Outcome("failed", str(error).strip().partition("\n")[0])


def _line(each: Job, outcome: Outcome) -> str:
    tail = f": {outcome.error} (see {each.folder / 'train.log'})" if outcome.error else ""
    return f"{outcome.state:8} {each.folder.name}{tail}"


def estimate(jobs: dict[Job, plan.Kind], ask: Ask) -> str:
    """The runs, what is left of each, and the hours that takes, timed once for each method and suite."""
    paces: dict[tuple[str, ...], stopwatch.Pace] = {}
    lines, hours = [], 0.0
    for each, kind in jobs.items():
        state = job.state(each.folder).state
        key = (
            repr(kind.settings.agent),
            kind.env.partition("-singletask")[0],
            kind.settings.machine.device,
        )
        if key not in paces:
            print(f"timing {kind.row.method} in {kind.env}", file=sys.stderr)
            paces[key] = stopwatch.earlier(ask.runs, kind) or stopwatch.measure(
                kind, threads=ask.cpus_per_run
            )
        left = 1 - min(job.last_step(each.folder) / max(each.steps, 1), 1)
        need = 0.0 if state in ("done", "diverged") else left * paces[key].hours(kind.settings)
        hours += need
        lines.append(f"{state:8} {need:8.2f} h  {each.folder.name}")
    cores = ask.cpus or os.cpu_count() or 1
    slots = max(1, cores // ask.cpus_per_run)
    sources = collections.Counter(pace.source for pace in paces.values())
    lines += [
        f"{len(jobs)} runs, {hours:.2f} hours of training; {hours / min(slots, len(jobs)):.2f} with {slots} at a time",
        "Step times: "
        + "; ".join(f"{source} ({count})" for source, count in sources.items())
        + ".",
        "Taken one run at a time: neighbours on the same cores make it longer. Making data is not included.",
    ]
    return "\n".join(lines)


def run(ask: Ask, extra: Sequence[str] = ()) -> bool:
    """Expand, skip what has ended, run the rest; whether every run is done. Raises: as `check`, `plan`, `execute`."""
    planned = ask.check().plan(extra)
    for reason in planned.left_out:
        print(f"left out: {reason}")
    if not planned.kinds:
        raise ValueError("nothing to run: no method or environment of the table is in this version")
    jobs = jobs_of(ask, planned.kinds)
    if ask.dry_run:
        print(estimate(jobs, ask))
        return True
    states = {each: job.state(each.folder) for each in jobs}
    ended = {
        each: outcome for each, outcome in states.items() if outcome.state in ("done", "diverged")
    }
    todo = [each for each in jobs if each not in ended]
    print(f"{len(jobs)} runs in {ask.runs}: {len(ended)} ended before, {len(todo)} to do")
    outcomes = ended | (execute(todo, ask) if todo else {})
    bad = {each: outcome for each, outcome in outcomes.items() if outcome.state != "done"}
    print(
        f"{len(outcomes) - len(bad)} of {len(jobs)} runs done. Tables: python -m wgflow_rl.report {ask.runs}"
    )
    for each, outcome in bad.items():
        print(_line(each, outcome))
    return not bad


def main(args: list[str] | None = None) -> None:
    ask, extra = tyro.cli(
        Ask, args=args, prog="python -m wgflow_rl.sweep", return_unknown_args=True
    )
    with one_line_errors():
        if not run(ask, extra):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
