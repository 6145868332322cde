"""Run many trainings on Ray: `python -m wgflow_rl.sweep --methods dfp --envs ENV --seeds 3`.

Examples::

    python -m wgflow_rl.sweep --table 1 --dry-run          # list the runs
    python -m wgflow_rl.sweep --table 1 --dry-run --time   # and estimate their hours
    python -m wgflow_rl.sweep --table 1 --settings         # print the settings of every cell as CSV
    python -m wgflow_rl.sweep --methods dfp --envs ENV --seeds 3 --offline-steps 2000

Unknown flags are passed to `python -m wgflow_rl.train`. Repeat the command to continue: finished
runs are skipped, stopped ones resumed and failed ones retried. On Ctrl-C every run writes a
checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from tqdm import tqdm

from wgflow_rl import plugins
from wgflow_rl.experiments import job, plan, stopwatch
from wgflow_rl.experiments.job import Job, Outcome
from wgflow_rl.utils.cli import UserError, one_line_errors
from wgflow_rl.utils.flags import at_least, at_most
from wgflow_rl.utils.processes import cores

MOST_SEEDS = 10_000
REFRESH = 1.0  # seconds between updates of the progress bar


@dataclass(frozen=True)
class Args:
    """Run a table of the paper, or methods x environments x seeds.

    Other flags are passed to train.
    """

    table: int | None = None
    """A table of the paper: 1, 2, 3, 4, 6 or 7."""
    variants: bool = False
    """Add DFP with the published code's field and with ours (not in the paper)."""
    methods: tuple[str, ...] = ()
    envs: tuple[str, ...] = ()
    seeds: int | None = None
    """Number N of seeds 0, ..., N - 1 (default: the table's, 8 for Table 7 and 5 otherwise)."""
    preset: str | None = None
    """Preset of train (default: the paper's for a table, laptop otherwise)."""
    runs: Path = Path("runs/sweep")
    """Parent of the run folders; on a cluster, a folder shared by all machines."""
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
    dry_run: bool = False
    """List the runs and stop."""
    time: bool = False
    """With --dry-run: estimate the hours, from earlier runs or from short ones on this machine."""
    settings: bool = False
    """Print the settings of every method in every environment as CSV, and stop."""
    plugin: plugins.Flag = ()

    def check(self) -> Args:
        """Return the arguments. Raises: ValueError naming the first invalid flag."""
        if (self.table is None) == (not self.methods and not self.envs):
            raise ValueError("wanted either --table N, or --methods and --envs")
        if self.table is None and not (self.methods and self.envs):
            raise ValueError("--methods and --envs go together; give at least one of each")
        if self.variants and self.table is None:
            raise ValueError("--variants adds rows to a table; wanted --table N with it")
        if self.time and not self.dry_run:
            raise ValueError("--time estimates without running; wanted --dry-run with it")
        at_least(1, seeds=self.seeds, cpus=self.cpus, cpus_per_run=self.cpus_per_run)
        at_least(0, gpus_per_run=self.gpus_per_run, retries=self.retries)
        at_most(MOST_SEEDS, seeds=self.seeds)
        most = self.cpus or cores()
        if self.address is None and self.cpus_per_run > most:
            raise ValueError(
                f"--cpus-per-run is {self.cpus_per_run}; wanted at most {most}, the number of cores"
            )
        return self

    @property
    def seed_count(self) -> int:
        if self.seeds is not None:
            return self.seeds
        return 5 if self.table is None else plan.table(self.table).seeds

    def plan(self, extra: Sequence[str]) -> plan.Plan:
        plugins.load(self.plugin)
        extra = (*extra, *(word for name in self.plugin for word in ("--plugin", name)))
        if self.table is not None:
            return plan.from_table(
                self.table, preset=self.preset, variants=self.variants, extra=extra
            )
        return plan.from_methods(
            self.methods, self.envs, preset=self.preset or "laptop", extra=extra
        )


def jobs_of(args: Args, kinds: Sequence[plan.Kind]) -> dict[Job, plan.Kind]:
    """Jobs of all kinds and seeds without duplicates, ordered by seed; equal offline phases are shared."""
    found: dict[Path, tuple[Job, tuple[plan.Kind, int]]] = {}
    for seed in range(args.seed_count):
        for kind in kinds:
            each = kind.job(args.runs, seed, threads=args.cpus_per_run)
            found.setdefault(each.folder, (each, (kind, seed)))
    return plan.share_offline(dict(found.values()), args.runs)


def with_offline_phases(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and the offline phases that they share, each before the first job that starts from it."""
    return list(dict.fromkeys(part for each in jobs for part in (each.offline, each) if part))


def execute(jobs: Sequence[Job], args: Args) -> dict[Job, Outcome]:
    """Run the jobs on Ray and return their outcomes; a job with a shared offline phase starts after it.

    Raises:
        RuntimeError: When Ray cannot start.
        KeyboardInterrupt: After every run has written its checkpoint.
    """
    outcomes: dict[Job, Outcome] = {}
    todo = with_offline_phases(jobs)
    steps = {each: each.steps - (each.offline.steps if each.offline else 0) for each in todo}
    with (
        _ray(args) as ray,
        tqdm(total=sum(steps.values()), unit="step", mininterval=5, smoothing=0) as bar,
    ):
        # Ray restarts a task whose worker has died; the folder's lock then waits for a training
        # left behind.
        resources = {
            "num_cpus": args.cpus_per_run,
            "num_gpus": args.gpus_per_run,
            "max_retries": args.retries,
        }
        task = ray.remote(**resources)(job.execute)
        slots, waiting, pending = _slots(ray, args), todo.copy(), {}
        try:
            while waiting or pending:
                for each in waiting.copy():
                    if len(pending) < slots and (not each.offline or each.offline in outcomes):
                        pending[task.remote(each, retries=args.retries)] = each
                        waiting.remove(each)
                ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=REFRESH)
                for ref in ready:
                    each = pending.pop(ref)
                    outcomes[each] = _outcome(ray, ref)
                    bar.write(_line(each, outcomes[each]))
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
def _ray(args: Args) -> Iterator[Any]:
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
        if args.address is None:
            quiet("local", num_cpus=args.cpus or cores(), include_dashboard=False)
        else:
            quiet(args.address)
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


def _slots(ray: Any, args: Args) -> int:
    """Number of runs that the machine or cluster trains at once."""
    there = ray.cluster_resources()
    slots = there.get("CPU", 1) // args.cpus_per_run
    if args.gpus_per_run:
        slots = min(slots, there.get("GPU", 0) // args.gpus_per_run)
    return max(1, int(slots))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _outcome(ray: Any, ref: Any) -> Outcome:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:  # worker or machine lost more often than --retries
        return Outcome("failed", str(error).strip().partition("\n")[0])


def _line(each: Job, outcome: Outcome) -> str:
    logs = [part.folder / "train.log" for part in (each, each.offline) if part]
    log = next((path for path in logs if path.exists()), logs[0])  # that of a phase that diverged
    tail = f": {outcome.error} (see {log})" if outcome.error else ""
    return f"{outcome.state:8} {each.folder.name}{tail}"


def listing(jobs: dict[Job, plan.Kind]) -> str:
    """List the runs and the offline phases that they share, with their states."""
    parts = with_offline_phases(jobs)
    lines = [f"{job.state(each.folder).state:8} {each.folder.name}" for each in parts]
    return "\n".join([*lines, f"{len(jobs)} runs. --time estimates their hours."])


def estimate(jobs: dict[Job, plan.Kind], args: Args) -> str:
    """List the runs with the hours that remain, timed once per agent and suite."""
    paces: dict[tuple[str, ...], stopwatch.Pace] = {}
    left: dict[Job, float] = {}  # hours
    for each, kind in jobs.items():
        key = (
            repr(kind.settings.agent),
            kind.env.partition("-singletask")[0],
            kind.settings.machine.device,
        )
        if key not in paces:
            print(f"timing {kind.row.method} in {kind.env}", file=sys.stderr)
            paces[key] = stopwatch.from_earlier_run(args.runs, kind) or stopwatch.measure(
                kind, threads=args.cpus_per_run
            )
        parts = {each: kind.settings}
        if each.offline:
            offline, online = (
                dataclasses.replace(kind.settings.schedule, **{steps: 0})
                for steps in ("online_steps", "offline_steps")
            )
            parts = {
                each.offline: dataclasses.replace(kind.settings, schedule=offline),
                each: dataclasses.replace(kind.settings, schedule=online),
            }
        for part, settings in parts.items():
            ended = job.state(part.folder).state in ("done", "diverged")
            share = 1 - min(job.last_step(part.folder) / max(part.steps, 1), 1)
            left[part] = 0.0 if ended else share * paces[key].hours(settings)
    lines = [
        f"{job.state(part.folder).state:8} {need:8.2f} h  {part.folder.name}"
        for part, need in left.items()
    ]
    hours = sum(left.values())
    slots = max(1, (args.cpus or cores()) // args.cpus_per_run)
    sources = collections.Counter(pace.source for pace in paces.values())
    lines += [
        f"{len(jobs)} runs, {hours:.2f} hours of training; {hours / min(slots, len(jobs)):.2f} with {slots} at a time",
        "Step times: "
        + "; ".join(f"{source} ({count})" for source, count in sources.items())
        + ".",
        "Estimates are for one run at a time; runs that share cores take longer. Generating data is not included.",
    ]
    return "\n".join(lines)


def run(args: Args, extra: Sequence[str] = ()) -> bool:
    """Run all runs that are not finished; return True if every run is done."""
    planned = args.check().plan(extra)
    for reason in planned.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if not planned.kinds:
        raise ValueError("nothing to run: this version has no method or environment of the table")
    if args.settings:
        print(pd.DataFrame(plan.settings_table(planned.kinds)).to_csv(index=False), end="")
        return True
    jobs = jobs_of(args, planned.kinds)
    if args.dry_run:
        print(estimate(jobs, args) if args.time else listing(jobs))
        return True
    states = {each: job.state(each.folder) for each in jobs}
    ended = {
        each: outcome for each, outcome in states.items() if outcome.state in ("done", "diverged")
    }
    todo = [each for each in jobs if each not in ended]
    print(f"{len(jobs)} runs in {args.runs}: {len(ended)} ended before, {len(todo)} to do")
    outcomes = ended | (execute(todo, args) if todo else {})
    bad = {each: outcome for each, outcome in outcomes.items() if outcome.state != "done"}
    print(
        f"{len(outcomes) - len(bad)} of {len(jobs)} runs done. Tables: python -m wgflow_rl.report {args.runs}"
    )
    for each, outcome in bad.items():
        print(_line(each, outcome))
    return not bad


def main(argv: list[str] | None = None) -> None:
    args, extra = tyro.cli(
        Args, args=argv, prog="python -m wgflow_rl.sweep", return_unknown_args=True
    )
    with one_line_errors():
        if not run(args, extra):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
