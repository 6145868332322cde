"""Several seeds of one configuration in one process: which ones are asked for, and where they go on together."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wgflow_rl.agents import methods
from wgflow_rl.training import checkpoint
from wgflow_rl.training.settings import Settings, as_json, from_command_line
from wgflow_rl.training.updates import counts_updates


def asked(args: Sequence[str]) -> tuple[list[Settings], bool]:
    """The runs of a command line, one for each of `--seeds` or of the folders of `--resume`; whether they are resumed.

    Raises: ValueError for seeds that are none or come with --resume, and for runs that cannot share their updates.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="*")
    parser.add_argument("--seeds")
    given, rest = parser.parse_known_args(args)
    if given.resume is not None and given.seeds is not None:
        raise ValueError(
            "--seeds came with --resume, which takes the folders of the seeds: --resume DIR DIR ..."
        )
    if given.resume:
        runs = [Settings.resumed(["--resume", folder, *rest]) for folder in given.resume]
    elif given.resume is not None:
        runs = [Settings.resumed(args)]  # which says what is missing
    elif given.seeds is None:
        runs = [from_command_line(args)]
    else:
        if any(arg.partition("=")[0] == "--seed" for arg in rest):
            raise ValueError("--seeds came with --seed; leave one of them out")
        runs = [of_seed(from_command_line(rest), seed) for seed in parse(given.seeds)]
    if len(runs) > 1:
        check_alike(runs)
    return runs, given.resume is not None


def parse(text: str) -> list[int]:
    """'0-4', '0,2,5' or '0-2,7' as its seeds. Raises: ValueError for anything else, and for a seed that comes twice."""
    seeds = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if ends is None:
            raise ValueError(f"--seeds is {text!r}; wanted seeds such as 0-4, or 0,2,5")
        seeds += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds is {text!r}: each seed is wanted once, as in 0-4 or 0,2,5")
    return seeds


def of_seed(settings: Settings, seed: int) -> Settings:
    """The run of one of several seeds: its folder is that of `--seed`, or with --run-dir DIR it is DIR-sSEED."""
    folder = settings.run_dir and f"{settings.run_dir}-s{seed}"
    return replace(settings, seed=seed, run_dir=folder)


def check_alike(runs: Sequence[Settings]) -> None:
    """Raises: ValueError unless the runs differ in their seeds and folders alone, and their method lets them share."""
    first = runs[0]
    if len({run.seed for run in runs}) < len(runs):
        raise ValueError(
            "the folders of --resume hold the same seed twice; wanted one folder a seed"
        )
    for run in runs[1:]:
        a, b = (
            as_json(replace(first, seed=0, run_dir=None)),
            as_json(replace(run, seed=0, run_dir=None)),
        )
        if different := [name for name in a if a[name] != b[name]]:
            raise ValueError(
                f"{first.folder} and {run.folder} differ in {', '.join(different)}, not in their seeds alone; resume "
                "each by itself"
            )
    small = methods.build(replace(first.agent, hidden=(1,)), obs_dim=1, action_dim=1)
    if counts_updates(small):
        raise ValueError(
            f"--method {first.method} counts its own updates, so its seeds cannot share them; run each in a process of "
            "its own: python -m wgflow_rl.sweep"
        )


def last_common_step(folders: Sequence[Path]) -> int:
    """The newest step of which every folder holds an intact checkpoint; 0 if they were killed before their first.

    Raises: ValueError where a kill cannot have left them so far apart, DamagedCheckpoint if none is intact.
    """
    steps = [checkpoint.steps(folder) for folder in folders]
    common = sorted(set.intersection(*steps), reverse=True)
    if any(sum(step > max(common, default=0) for step in each) > 1 for each in steps):
        stand = ", ".join(
            f"{folder}: {max(each, default=0)}" for folder, each in zip(folders, steps, strict=True)
        )
        raise ValueError(
            f"the runs stand at steps too far apart to go on together ({stand}); resume each by itself"
        )
    for step in common:
        if all(_intact(folder, step) for folder in folders):
            return step
    if common:
        raise checkpoint.DamagedCheckpoint(
            "no step has an intact checkpoint in every folder; start again."
        )
    return 0


def _intact(folder: Path, step: int) -> bool:
    try:
        checkpoint.load(folder, step=step)
    except checkpoint.DamagedCheckpoint as error:
        warnings.warn(
            f"{error} Falling back to a checkpoint before it.", RuntimeWarning, stacklevel=3
        )
        return False
    return True
