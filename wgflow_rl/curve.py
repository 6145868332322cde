"""Draw the learning curve of one run or of several seeds: success and episode length.

python -m wgflow_rl.curve runs/maze-0 runs/maze-1 runs/maze-2 --out maze.png --title "pointmaze, 3 seeds"
"""

import argparse
import json
from pathlib import Path

from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.curve import draw_curve


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m wgflow_rl.curve", description="Draw one or several runs."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders that hold an eval.csv"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="default: RUN/curve.png; for several runs curve.png in the current folder",
    )
    parser.add_argument("--title", default="", help="default: the environment")
    args = parser.parse_args()
    for run in args.runs:
        if not (run / "eval.csv").exists():
            parser.error(f"{run} holds no eval.csv; a run's folder was expected.")
    default = args.runs[0] / "curve.png" if len(args.runs) == 1 else Path("curve.png")
    rows = [read_rows(run / "eval.csv")[1] for run in args.runs]
    title = args.title or ", ".join(dict.fromkeys(map(environment, args.runs)))
    print(draw_curve(*rows, path=args.out or default, title=title))


def environment(run: Path) -> str:
    """Name of a run's environment, the title of the curve that training draws; "" if it is unknown."""
    try:
        return str(json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["env"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    main()
