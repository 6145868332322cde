"""Draw the learning curve of one run or of several seeds: success and episode length.

python -m wgflow_rl.curve runs/maze-0 runs/maze-1 runs/maze-2 --out maze.png --title "pointmaze, 3 seeds"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.curve import draw_curve
from wgflow_rl.utils.cli import one_line_errors

COLUMNS = ("step", "phase", "success", "success_low", "success_high", "length")


@dataclass(frozen=True)
class Args:
    """Draw one or several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of runs, with an eval.csv each."""
    out: Path | None = None
    """PNG to write (default: RUN/curve.png; for several runs curve.png in the current folder)."""
    title: str = ""
    """Title (default: the environment)."""


def evaluations(run: Path) -> list[dict[str, str]]:
    """Rows of a run's eval.csv. Raises: ValueError if there is none, or one of something else."""
    path = run / "eval.csv"
    if not path.exists():
        raise ValueError(f"{run} holds no eval.csv; a run's folder was expected.")
    columns, rows = read_rows(path)
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ValueError(f"{path} is not that of a run: it has no {', '.join(missing)}.")
    return rows


def environment(run: Path) -> str:
    """Name of a run's environment, the title of the curve that training draws; "" if it is unknown."""
    try:
        return str(json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["env"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def run(args: Args) -> Path:
    """Draw the curve and return its path."""
    if not args.runs:
        raise ValueError("wanted the folder of at least one run")
    rows = [evaluations(folder) for folder in args.runs]
    title = args.title or ", ".join(dict.fromkeys(filter(None, map(environment, args.runs))))
    default = args.runs[0] / "curve.png" if len(args.runs) == 1 else Path("curve.png")
    return draw_curve(*rows, path=args.out or default, title=title)


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.curve")
    with one_line_errors():
        print(run(args))


if __name__ == "__main__":
    main()
