"""`python -m wgflow_rl.data generate|download|check|info ENV`: make, fetch, check or look at an environment's data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from wgflow_rl import data, envs
from wgflow_rl.cli import one_line_errors
from wgflow_rl.data import generated, ogbench

Env = Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="Like cube-single-play-singletask-task2-v0.")]


@dataclass(frozen=True)
class Generate:
    """Make data with OGBench's own oracles, unless they are there. A generation that was stopped goes on."""

    env: Env
    rows: int | None = None
    """Training transitions (default: as many as the official set)."""
    seed: int = 0
    folder: Path | None = None
    """The data's own folder is made in this one (default: $WGFLOW_DATA, or ~/.cache/wgflow)."""
    workers: int | None = None
    """Processes (default: one a core)."""

    def run(self) -> None:
        root = data.cache_root() if self.folder is None else self.folder.expanduser()
        folder = generated.generate(self.env, root=root, rows=self.rows, seed=self.seed, workers=self.workers)
        print(folder)
        Check(self.env, folder).run()


@dataclass(frozen=True)
class Download:
    """Fetch the official files, unless they are there."""

    env: Env
    folder: Path = Path("~/.ogbench/data")
    """Where they are put."""

    def run(self) -> None:
        data.SOURCES[envs.parse(self.env).source].download(self.env, self.folder.expanduser())
        Check(self.env, self.folder).run()


@dataclass(frozen=True)
class Check:
    """Read every file as training would; the first thing wrong with one is the error, with exit code 2."""

    env: Env
    folder: Path
    """Holds the environment's files; or one of them."""

    def run(self) -> None:
        source = data.SOURCES[envs.parse(self.env).source]
        for part in source.contents(self.folder.expanduser(), self.env):
            print(f"{part.source}\n  {part.summary()}")


@dataclass(frozen=True)
class Info(Check):
    """Check both files, then count: what the training data know of each task, returns, ranges of the actions."""

    def run(self) -> None:
        super().run()
        path = ogbench.pair(self.folder.expanduser(), self.env)[0]
        name = envs.parse(self.env)
        print(f"{path.name}, for each task of {name.suite}:")
        for task in envs.ogbench.TASKS:
            part = ogbench.read(path, f"{name.suite}-{name.kind}-singletask-task{task}-v0")
            starts = np.flatnonzero(part.terminals) + 1 - part.lengths
            reached = int(np.logical_or.reduceat(part.masks == 0, starts).sum())
            returns = part.returns
            print(
                f"  task {task}: {part.successes:,} rows at the goal, in {reached:,} of {part.trajectories:,} "
                f"trajectories; returns {returns.min():g} to {returns.max():g}, mean {returns.mean():.1f}"
            )
        low, high = part.actions.min(0), part.actions.max(0)
        print("  actions " + ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)))


COMMANDS: Any = Generate | Download | Check | Info


def main(args: list[str] | None = None) -> None:
    """Parse the command line and do what it asks."""
    ask = tyro.cli(COMMANDS, args=args, prog="python -m wgflow_rl.data")
    with one_line_errors():
        ask.run()


if __name__ == "__main__":
    main()
