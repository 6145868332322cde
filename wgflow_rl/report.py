"""The paper's tables and figures with your runs: `python -m wgflow_rl.report [RUNS ...]`.

Examples::

    python -m wgflow_rl.report runs/sweep --out report   # tables and figures with runs
    python -m wgflow_rl.report --tables 1 6              # without runs: the published numbers
    python -m wgflow_rl.report --check DIR               # compare published numbers with DIR/tableN*.csv

Writes report.md, tables.csv, runs.csv and figures. RUNS may hold logs of other code bases and
published curves (docs/reproduce.md).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from wgflow_rl import plugins
from wgflow_rl.experiments import paper_figures, published_curves, reading, stopwatch
from wgflow_rl.experiments.comparison import (
    MISSING,
    cell,
    escape,
    list_lines,
    markdown,
    missing,
    paired_lines,
    run_records,
    table_lines,
    table_records,
    tables_with_runs,
)
from wgflow_rl.experiments.results import RunGroup
from wgflow_rl.experiments.tables import (
    LISTS,
    NUMBERS,
    PAPER,
    TABLES,
    VARIANTS,
)
from wgflow_rl.experiments.verify import differences
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.files import make_folder, write_whole

COSTS = 9  # number of the table that is followed by the timings of our runs
COLUMNS = (
    *("table", "phase", "row", "column", "env", "by", "protocol"),
    *("seeds", "mean", "std", "low", "high", "values"),
)
NAMES = ("row", "column", "env", "protocol")  # columns with text from files of unknown origin
ABOUT = f"""\
Success in percent at the last evaluation of a phase. Rows marked *paper* are the numbers of {PAPER}, as printed. Rows
marked *ours* are `mean ± standard deviation (number of seeds)`, with n - 1 in the standard deviation; the letter refers
to the conditions below the table, which a comparison must take into account. A dash is a cell without a run that has
finished the phase; averages over tasks need a run of each. `tables.csv` adds 95 % bootstrap intervals and the value of
each seed.

*DFP* is the published method (`dfp`): the field of Eq. 3 with the absolute bandwidths of Tables 5 and 8. Other fields
are printed under *Not in the paper*, never in its row: {{variants}}.

The paper does not state its number of evaluation episodes; its numbers fit 100 per seed. The paper's Cube data are
OGBench's; "generated data" below are our own.
""".format(variants=", ".join(f"`{method}` is *{label}*" for method, label in VARIANTS.items()))


@dataclass(frozen=True)
class Args:
    """Compare your runs with the paper's tables and figures."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs, and curves of other code bases: logs NAME/ENV.csv, tables of published curves."""
    out: Path = Path("report")
    """Folder to write to."""
    tables: tuple[int, ...] = ()
    """Tables to print (default: those with runs, or all if there are no runs)."""
    all: bool = False
    """Print all tables, including those without runs."""
    figures: bool = True
    """Draw the figures."""
    peer_offline_steps: int | None = None
    """Last step of the offline phase of the curves of other code bases."""
    methods: tuple[str, ...] = ()
    """Published curves to draw (default: in each environment those with the highest success)."""
    versus: str = ""
    """Method to which all others are compared, seed by seed."""
    check: Path | None = None
    """Only compare the published numbers with the tables in this folder."""
    plugin: plugins.Flag = ()

    def numbers(self, groups: Sequence[RunGroup]) -> tuple[int, ...]:
        """Numbers of the tables to print. Raises: ValueError for a number that is not in the paper."""
        if unknown := set(self.tables) - set(NUMBERS):
            raise ValueError(f"--tables has {min(unknown)}; the paper has Tables 1 to 10")
        if self.tables:
            return tuple(sorted(set(self.tables)))
        return NUMBERS if self.all or not groups else tuple(sorted(tables_with_runs(groups)))


def render(numbers: Sequence[int], groups: Sequence[RunGroup]) -> list[str]:
    """Format tables as Markdown."""
    lines = []
    for number in numbers:
        if number in LISTS:
            lines += list_lines(number)
            lines += costs(groups) if number == COSTS else []
        else:
            lines += table_lines(TABLES[number], groups)
            lines += [missing(TABLES[number], groups), ""] if groups else []
    return lines


def costs(groups: Sequence[RunGroup]) -> list[str]:
    """Table of median times in milliseconds, from the logs of one run per group."""
    rows = []
    for group in groups:
        if group.peer or (pace := _pace(group)) is None:
            continue
        online = pace.online_step if group.total != group.offline else math.nan
        steps = [
            MISSING if math.isnan(step) else f"{1000 * step:.1f}"
            for step in (pace.offline_step, online)
        ]
        about = map(escape, (group.name, group.env, group.protocol))
        rows.append([*about, *steps, f"{pace.evaluation:.1f}"])
    if not rows:
        return []
    header = ["method", "environment", "conditions", "ms per update offline", "ms per online step"]
    return [
        "**Not in the paper**: median times of one of our runs, on a possibly shared machine (named in config.json).",
        "",
        *markdown([*header, "s per evaluation of 8 episodes"], rows),
    ]


def _pace(group: RunGroup) -> stopwatch.Pace | None:
    """Times of one run of the group; None if its logs do not tell them."""
    files = [group.folder / name for name in ("train.csv", "eval.csv", "config.json")]
    if not all(path.is_file() for path in files):  # a pipe would block
        return None
    try:
        return stopwatch.from_logs(group.folder, "")
    except (ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError):
        return None  # damaged; the results do not need them


def all_runs(groups: Sequence[RunGroup]) -> list[str]:
    """Table of all runs and logs found."""
    rows = [
        [escape(group.env), escape(group.name), escape(group.protocol)]
        + [cell(group, phase, interval=True) for phase in ("offline", "online")]
        + [f"{group.unfinished} unfinished" if group.unfinished else ""]
        for group in groups
    ]
    header = ["environment", "method", "conditions", "after offline, %", "after online, %", ""]
    about = "Mean ± standard deviation [95 % bootstrap interval of the mean] (seeds)."
    return ["## All runs", "", about, "", *markdown(header, rows)]


def write(args: Args) -> Path:
    """Write the report and return its path. Runs and logs that cannot be read are named in it.

    Raises:
        OSError: If a file cannot be written.
    """
    skipped: list[str] = []
    groups = reading.read(args.runs, peer_offline=args.peer_offline_steps, skipped=skipped)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    everything = published_curves.in_reach(groups, args.methods)
    groups = [group for group in everything if not group.source]
    numbers = args.numbers(groups)
    lines = ["# The paper's tables with our runs", "", ABOUT]
    if not everything:
        where = ", ".join(map(str, args.runs)) or "any folder"
        found = f"No runs were found in {where}: all numbers below are the paper's."
        lines += [found, ""]
        print(found)
    elif groups:
        lines += all_runs(groups)
    if args.versus:
        lines += paired_lines(groups, args.versus)
    if skipped:
        lines += ["## Skipped", "", *(f"- {escape(reason)}" for reason in skipped), ""]
    lines += render(numbers, groups)
    make_folder(args.out.resolve())
    if groups and args.figures:
        lines += paper_figures.section(groups, numbers, args.out)
    lines += published_curves.section(everything, args.methods, args.out if args.figures else None)
    records = [r for n in numbers if n in TABLES for r in table_records(TABLES[n], groups)]
    listed = [line for group in everything for line in run_records(None, group.name, [group])]
    write_whole(args.out / "tables.csv", _csv(records))
    write_whole(args.out / "runs.csv", _csv(listed))
    write_whole(args.out / "report.md", "\n".join(lines))
    return args.out / "report.md"


def _csv(records: Sequence[dict[str, Any]]) -> str:
    """Format records; names of unknown origin that a spreadsheet would compute are quoted."""
    records = [
        {name: _inert(value) if name in NAMES else value for name, value in record.items()}
        for record in records
    ]
    frame = pd.DataFrame(records, columns=list(COLUMNS)).astype({"seeds": "Int64"})
    return frame.to_csv(index=False)


def _inert(value: Any) -> Any:
    """Quote text that a spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def check(folder: Path) -> bool:
    """Print published cells that differ from the tables in a folder; return True if none do."""
    count, lines = differences(folder)
    print("\n".join([*lines, f"{count} cells in {folder}, {len(lines)} differences"]))
    return not lines


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, prog="python -m wgflow_rl.report")
    with one_line_errors():
        plugins.load(args.plugin)
        if args.check is not None:
            if not check(args.check):
                raise SystemExit(1)
        else:
            print(write(args))


if __name__ == "__main__":
    main()
