"""`python -m wgflow_rl.data generate|download|info ENV`: make, fetch or look at the data of an environment."""

from __future__ import annotations

import argparse
from pathlib import Path

from wgflow_rl import data, envs
from wgflow_rl.cli import one_line_errors
from wgflow_rl.data import generated, ogbench


def main(args: list[str] | None = None) -> None:
    """Parse the command line, do it, print where the files lie and what they hold."""
    parser = argparse.ArgumentParser(prog="python -m wgflow_rl.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="make data with OGBench's own oracles, into the cache")
    make.add_argument("--rows", type=int, help="training transitions (default: as many as the official set)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--workers", type=int, help="processes (default: one a core)")
    fetch = commands.add_parser("download", help="fetch the official files")
    look = commands.add_parser("info", help="check files and count their rows, trajectories and successes")
    for command, default in ((fetch, Path("~/.ogbench/data")), (look, None)):
        command.add_argument(
            "--folder", type=Path, default=default, required=default is None, help="holds X.npz and X-val.npz"
        )
    for command in (make, fetch, look):
        command.add_argument("env", help="such as cube-single-play-singletask-task2-v0")
    ask = parser.parse_args(args)
    with one_line_errors():
        envs.check_name(ask.env)
        if ask.command == "generate":
            folder = generated.generate(
                ask.env, root=data.cache_root(), rows=ask.rows, seed=ask.seed, workers=ask.workers
            )
        else:
            folder = ask.folder.expanduser()
        if ask.command == "download":
            ogbench.download(ask.env, folder)
        for part in data.load(ask.env, folder=folder):
            print(f"{part.source}\n  {part.summary()}")


if __name__ == "__main__":
    main()
