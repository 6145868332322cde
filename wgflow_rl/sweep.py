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

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from wgflow_rl import plugins
from wgflow_rl.experiments import cluster, job, plan, stopwatch
from wgflow_rl.experiments.job import Job
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.flags import at_least, at_most

MOST_SEEDS = 10_000


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
    machines: Annotated[cluster.Machines, tyro.conf.arg(name="")] = cluster.THIS
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
        at_least(1, seeds=self.seeds)
        at_most(MOST_SEEDS, seeds=self.seeds)
        self.machines.check()
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
            each = kind.job(args.runs, seed, threads=args.machines.cpus_per_run)
            found.setdefault(each.folder, (each, (kind, seed)))
    return plan.share_offline(dict(found.values()), args.runs)


def listing(jobs: dict[Job, plan.Kind]) -> str:
    """List the runs and the offline phases that they share, with their states."""
    parts = job.with_offline_phases(jobs)
    lines = [f"{job.state(each.folder).state:8} {each.folder.name}" for each in parts]
    return "\n".join([*lines, f"{len(jobs)} runs. --time estimates their hours."])


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
        print(stopwatch.estimate(jobs, args.runs, args.machines) if args.time else listing(jobs))
        return True
    states = {each: job.state(each.folder) for each in jobs}
    ended = {
        each: outcome for each, outcome in states.items() if outcome.state in ("done", "diverged")
    }
    todo = [each for each in jobs if each not in ended]
    print(f"{len(jobs)} runs in {args.runs}: {len(ended)} ended before, {len(todo)} to do")
    outcomes = ended | (cluster.execute(todo, args.machines) if todo else {})
    bad = {each: outcome for each, outcome in outcomes.items() if outcome.state != "done"}
    print(
        f"{len(outcomes) - len(bad)} of {len(jobs)} runs done. Tables: python -m wgflow_rl.report {args.runs}"
    )
    for each, outcome in bad.items():
        print(cluster.line(each, outcome))
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
