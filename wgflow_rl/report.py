"""The paper's tables and figures from your runs: `python -m wgflow_rl.report RUNS [MORE ...] [--out DIR]`.

Writes report.md, tables.csv, runs.csv and figures. Success in percent: mean ± standard deviation [95 % bootstrap
interval of the mean] (seeds), beside the published number. RUNS may hold logs of other code bases (docs/reproduce.md).
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from wgflow_rl.experiments import results, stopwatch
from wgflow_rl.experiments.comparison import (
    COLUMNS,
    MISSING,
    cell,
    fits,
    markdown,
    numbers,
    sources,
    table_lines,
)
from wgflow_rl.experiments.figures import draw
from wgflow_rl.experiments.published import COSTS, FIGURES, FIGURES_LAYOUT, TABLES
from wgflow_rl.experiments.results import Arm
from wgflow_rl.utils.cli import one_line_errors
from wgflow_rl.utils.files import write_whole

Panels = dict[str, dict[str, list[Arm]]]  # panel -> line -> the arms it averages


@dataclass(frozen=True)
class Ask:
    """Set runs beside the paper's tables."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, and of other code bases' logs NAME/ENV.csv (columns step,seed,success)."""
    out: Path = Path("report")
    peer_offline_steps: int | None = None
    """Where the offline phase of those logs ends (they do not say)."""


def costs(arms: Sequence[Arm]) -> list[str]:
    """Table 9 from the clocks of the runs: medians, of whatever machine they ran on."""
    rows = []
    for arm in arms:
        if arm.peer or (pace := stopwatch.clocked(arm.runs[0].folder, "")) is None:
            continue
        online = (
            f"{1000 * pace.online_step:.1f}" if (arm.total or 0) > (arm.offline or 0) else MISSING
        )
        rows.append(
            [
                arm.name,
                arm.env,
                arm.protocol,
                f"{1000 * pace.offline_step:.1f}",
                online,
                f"{pace.evaluation:.1f}",
            ]
        )
    header = [
        "method",
        "environment",
        "protocol",
        "ms an update",
        "ms a step online",
        "s an evaluation of 8 episodes",
    ]
    told = "Paper: not found. Ours are medians of one seed's clock, with "
    told += "whatever else the machine was doing; config.json of a run names the machine."
    lines = [f"## Table {COSTS}. Computation", "", told, ""]
    return lines + (markdown(header, rows) if rows else [f"{MISSING} (any run fills this)", ""])


def all_runs(arms: Sequence[Arm], records: list[dict[str, Any]]) -> list[str]:
    """Everything that was found, whatever table it belongs to."""
    rows = []
    for arm in arms:
        note = f"{arm.unfinished} unfinished" if arm.unfinished else ""
        rows.append(
            [arm.env, arm.name, arm.protocol, cell(arm, "offline"), cell(arm, "online"), note]
        )
        for phase in ("offline", "online"):
            line = {
                "phase": phase,
                "row": arm.name,
                "env": arm.env,
                "by": "peer" if arm.peer else "ours",
            }
            records.append(line | {"protocol": arm.protocol} | numbers(arm, phase))
    header = [
        "environment",
        "method",
        "protocol (offline + online)",
        "after offline, %",
        "after online, %",
        "",
    ]
    return ["## All runs", "", *markdown(header, rows)]


def figures(arms: Sequence[Arm], out: Path) -> list[str]:
    """Draw the paper's figures, and one for every environment that is in none of them; the lines that show them."""
    lines = ["## Figures", "", FIGURES_LAYOUT, ""]
    shown: set[str] = set()
    for figure in FIGURES:
        table = TABLES[figure.table]
        inside = {column.env: f"{column.group}, {column.label}" for column in table.columns}
        mine = [
            (row.label, arm)
            for row in table.rows
            for arm in arms
            if fits(table, row, arm) and arm.env in inside
        ]
        mine += [(arm.method, arm) for arm in arms if arm.peer and arm.env in inside]
        if not mine:
            lines += [
                f"Figure {figure.number}, {figure.title}: {MISSING}, runs of Table {table.number} fill it.",
                "",
            ]
            continue
        shown |= {arm.env for _, arm in mine}
        title = f"As Figure {figure.number}: {figure.title}"
        lines += _drawn(mine, inside, out, f"figure-{figure.number}", title, average=figure.average)
    for env in sorted({arm.env for arm in arms} - shown):
        mine = [(arm.name, arm) for arm in arms if arm.env == env]
        lines += _drawn(mine, {env: env}, out, f"curves-{env}", "Offline, then online")
    return lines


def _drawn(
    mine: list[tuple[str, Arm]],
    places: dict[str, str],
    out: Path,
    stem: str,
    title: str,
    average: bool = False,
) -> list[str]:
    """A picture for each protocol: curves of different lengths do not belong side by side."""
    lines = []
    for protocol in sorted({arm.protocol for _, arm in mine if not arm.peer}) or [""]:
        panels: Panels = {}
        chosen = [(name, arm) for name, arm in mine if arm.peer or arm.protocol == protocol]
        for env, place in places.items():
            for name, arm in chosen:
                if arm.env == env:
                    panels.setdefault(place, {}).setdefault(name, []).append(arm)
        left_out: list[str] = []
        if average:
            panels, left_out = _averaged(panels)
        ends = {arm.offline for _, arm in chosen if not arm.peer}
        slug = protocol.removesuffix(" steps").replace(" preset, ", "-").replace(" ", "")
        path = draw(
            panels, out / f"{stem}{'-' * bool(slug)}{slug}.png", title=f"{title} ({protocol})" if protocol else title,
            offline=ends.pop() if len(ends) == 1 else None,
        )  # fmt: skip
        lines += [f"![{title}]({path.name})", ""]
        if left_out:
            lines += [
                f"Not in the average, for they were not run in all of its tasks: {', '.join(left_out)}.",
                "",
            ]
    return lines


def _averaged(panels: Panels) -> tuple[Panels, list[str]]:
    """One panel: the average over tasks of each method that was run in all of them; and the names of the others."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for place, lines in panels.items():
        for name in lines:
            tasks[name].add(place)
    wanted = max(tasks.values(), key=len)
    names = [name for name in tasks if tasks[name] >= wanted]
    label = f"average of {len(wanted)} task{'s' * (len(wanted) > 1)}"
    lines = {name: [arm for place in wanted for arm in panels[place][name]] for name in names}
    return {label: lines}, [name for name in tasks if name not in names]


def write(ask: Ask) -> Path:
    """Read the runs, write everything, return the path of report.md. Raises: as `results.read`; OSError."""
    arms = results.read(ask.runs, peer_offline=ask.peer_offline_steps)
    ask.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    about = "Success in percent at the last evaluation of the phase: mean ± standard deviation (n - 1) [95 % bootstrap "
    about += "interval of the mean over seeds] (number of seeds). A dash: no run has come so far."
    lines = ["# Our runs beside the paper's tables", "", about, "", *all_runs(arms, listed)]
    for table in TABLES.values():
        lines += table_lines(table, arms, records)
    lines += [*costs(arms), *figures(arms, ask.out), *sources()]
    write_whole(ask.out / "tables.csv", _csv(records))
    write_whole(ask.out / "runs.csv", _csv(listed))
    write_whole(ask.out / "report.md", "\n".join(lines))
    return ask.out / "report.md"


def _csv(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def main(args: list[str] | None = None) -> None:
    ask = tyro.cli(Ask, args=args, prog="python -m wgflow_rl.report")
    with one_line_errors():
        print(write(ask))


if __name__ == "__main__":
    main()
