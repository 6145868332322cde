"""Tables of the paper with our results, as Markdown and as records of a CSV file."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wgflow_rl.agents import presets
from wgflow_rl.experiments.results import RunGroup, Summary, paired
from wgflow_rl.experiments.tables import (
    LISTS,
    ROW_KEYS,
    TABLES,
    TWELVE,
    Column,
    Phase,
    ResultTable,
    Row,
    key_of,
    records,
)

MISSING = "—"
PAIRED = (
    "Percentage points over the seeds that both have: mean ± standard deviation [95 % bootstrap interval of the "
    "mean] (seeds). With three seeds an interval leaves out 0 if they have one sign: by chance, one time in four."
)
ARROW = " → "  # between the phases of a cell
BY = "source"  # header of the column "paper" or "ours"
# columns of a CSV file that are not in the paper's table
HIDDEN = ("table", "section", "note", "doubt")


# ---- which runs belong to a row ----------------------------------------------------------------------------------


@functools.cache
def _agent(preset: str, method: str, env: str) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(presets.preset(preset, method, env)[0])))


def matches(table: ResultTable, row: Row, group: RunGroup) -> bool:
    """Return True if the runs trained the row's agent, with equal settings.

    Runs of a laptop preset are compared with the row at laptop size, all others with the table's
    preset. Runs with an online phase do not match an offline table, and vice versa.
    """
    if group.peer or group.method != row.method or row.method not in presets.METHODS:
        return False
    if group.env not in table.envs:
        return False
    if ("online" in table.phases) != ((group.total or 0) > (group.offline or 0)):
        return False
    preset = table.laptop if group.preset.startswith("laptop") else table.preset
    wanted = _agent(preset, row.method, group.env) | dict(row.settings)
    # Runs of other versions may have settings that this one has not.
    return all(wanted[name] == value for name, value in group.agent.items() if name in wanted)


# ---- cells -------------------------------------------------------------------------------------------------------


def cell(group: RunGroup | None, phase: Phase, *, interval: bool = False) -> str:
    """Format success in percent as mean ± std (seeds); a dash if no run has finished the phase."""
    found = None if group is None else group.summary(phase)
    return MISSING if found is None else statistics(found, interval=interval)


def statistics(found: Summary, *, interval: bool, sign: str = "") -> str:
    """Format as mean ± std [interval] (seeds); a published mean as mean [interval]."""
    mean = f"{found.mean:{sign}.1f}"
    if found.interval is None:
        return f"{mean} (1)"
    low, high = found.interval
    between = f" [{low:{sign}.1f}, {high:{sign}.1f}]" if interval else ""
    return f"{mean} ± {found.std:.1f}{between} ({found.seeds})" if found.seeds else mean + between


def average(groups: Iterable[RunGroup | None], phase: Phase) -> str:
    """Mean over tasks of means over seeds; a dash unless every task has a finished run."""
    values = [[] if group is None else group.at_end(phase) for group in groups]
    if not all(map(len, values)):
        return MISSING
    return f"{100 * np.mean([np.mean(each) for each in values]):.1f}"


def escape(text: str) -> str:
    """Escape a name of unknown origin: in Markdown it is text, without markup, HTML or line breaks."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(line, quote=False))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)] + [""]


# ---- tables ------------------------------------------------------------------------------------------------------


def blocks(table: ResultTable) -> list[tuple[Column, ...]]:
    """Split columns into printed blocks: all, or three at a time with two numbers per cell."""
    width = len(table.columns) if len(table.phases) == 1 else 3
    return [table.columns[i : i + width] for i in range(0, len(table.columns), width)]


def table_lines(table: ResultTable, groups: Sequence[RunGroup]) -> list[str]:
    """Format a table as Markdown."""
    printed = f"Section {table.section}; {table.seeds} seeds. {table.note}".strip()
    lines = [f"## Table {table.number}. {table.title}", "", printed, ""]
    lines += [critics(table), ""] if table.number == 2 else []
    legend = Legend()
    for columns in blocks(table):
        rows = []
        for row in table.rows:
            cells = [published(table, row, column) for column in columns]
            rows.append([row.label, *row.attributes.values(), "paper", *cells])
            about = ["" for _ in row.attributes]
            rows += [
                ["", *about, f"ours ({key})", *cells]
                for key, cells in protocol_rows(
                    table, columns, matching(table, row, groups), legend
                )
            ]
        attributes = table.rows[0].attributes
        header = [table.varies, *attributes, BY, *(column.label for column in columns)]
        lines += markdown(header, rows)
    lines += extra_rows(table, groups, legend)
    return lines + legend.lines() + doubts(records(table.number))


def published(table: ResultTable, row: Row, column: Column) -> str:
    return ARROW.join(str(table.numbers[row.label, column.label, phase]) for phase in table.phases)


def matching(table: ResultTable, row: Row, groups: Sequence[RunGroup]) -> list[RunGroup]:
    return [group for group in groups if matches(table, row, group)]


def protocol_rows(
    table: ResultTable, columns: Sequence[Column], groups: Sequence[RunGroup], legend: Legend
) -> list[tuple[str, list[str]]]:
    """(key of the conditions, cells) for each set of conditions with at least one result."""
    lines = []
    here = {env for column in columns for env in column.envs}
    for protocol in sorted({group.protocol for group in groups if group.env in here}):
        found = {group.env: group for group in groups if group.protocol == protocol}
        cells = []
        for column in columns:
            inside = [found.get(env) for env in column.envs]
            single = len(inside) == 1
            parts = [
                cell(inside[0], phase) if single else average(inside, phase)
                for phase in table.phases
            ]
            cells.append(MISSING if set(parts) == {MISSING} else ARROW.join(parts))
        if set(cells) != {MISSING}:
            lines.append((legend.key(protocol), cells))
    return lines


def not_in_paper(table: ResultTable, groups: Sequence[RunGroup]) -> dict[str, list[RunGroup]]:
    """{label: runs} of rows that the table does not have: DFP with other fields, and other code bases."""
    found = {row.label: matching(table, row, groups) for row in table.variants}
    for group in groups:
        if group.peer and group.env in table.envs:
            found.setdefault(group.method, []).append(group)
    return {label: members for label, members in found.items() if members}


def extra_rows(table: ResultTable, groups: Sequence[RunGroup], legend: Legend) -> list[str]:
    """Table of the rows that are not in the paper."""
    found = not_in_paper(table, groups)
    if not found:
        return []
    lines = ["**Not in the paper**", ""]
    for columns in blocks(table):
        rows = [
            [escape(label), f"ours ({key})" if not members[0].peer else f"log ({key})", *cells]
            for label, members in found.items()
            for key, cells in protocol_rows(table, columns, members, legend)
        ]
        if rows:
            lines += markdown([table.varies, BY, *(column.label for column in columns)], rows)
    return lines


class Legend:
    """Letters that identify the conditions of runs, in order of first use."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def key(self, protocol: str) -> str:
        index = len(self.keys)
        letters = chr(ord("a") + index % 26) + (str(index // 26) if index >= 26 else "")
        return self.keys.setdefault(protocol, letters)

    def lines(self) -> list[str]:
        return [f"- ({key}) {escape(protocol)}" for protocol, key in self.keys.items()] + [
            ""
        ] * bool(self.keys)


def critics(table: ResultTable) -> str:
    """Sentence on the critics of our runs: number of target actions per row."""
    samples = {
        row.label: _agent("paper", row.method, table.envs[0])["target_samples"]
        for row in table.rows
    }
    alike = len(set(samples.values())) == 1
    counts = ", ".join(f"{label} {count}" for label, count in samples.items())
    start = "Our rows have equal critics" if alike else "Our rows differ in their critics too"
    return f"{start}: the target takes the best of target_samples actions ({counts})."


def list_lines(number: int) -> list[str]:
    """Format a table without success rates as printed in the paper."""
    rows = records(number)
    header = [name for name in rows[0] if name not in HIDDEN]
    lines = [f"## Table {number}. {LISTS[number]}", "", f"Section {rows[0]['section']}.", ""]
    lines += markdown(header, ([row[name] for name in header] for row in rows))
    return lines + doubts(rows)


def doubts(rows: Sequence[dict[str, str]]) -> list[str]:
    """Notes on ambiguities of the paper, with the rows concerned unless all are."""
    found: dict[str, dict[str, None]] = {}
    names = [row[key_of(row, (*ROW_KEYS, "parameter", "experiment", "task"))] for row in rows]
    for name, row in zip(names, rows, strict=True):
        if row.get("doubt"):
            found.setdefault(row["doubt"], {})[name] = None
    lines = []
    for doubt, where in found.items():
        which = "" if set(where) == set(names) else f" ({', '.join(where)})"
        lines.append(f"- Note: {doubt}{which}.")
    return lines + [""] * bool(lines)


def paired_lines(groups: Sequence[RunGroup], method: str) -> list[str]:
    """Table of differences to a method, seed by seed, where environment and conditions are equal.

    Raises:
        ValueError: If there is no run of the method.
    """
    base = {(group.env, group.protocol): group for group in groups if group.name == method}
    if not base:
        names = sorted({group.name for group in groups})
        raise ValueError(f"--versus is {method!r}; there are runs of {', '.join(names) or 'none'}")
    rows = []
    for group in groups:
        other = base.get((group.env, group.protocol), group)
        if other is not group:
            ends = [
                paired(100 * group.at_end(phase), 100 * other.at_end(phase))
                for phase in ("offline", "online")
            ]
            cells = [statistics(end, interval=True, sign="+") if end else MISSING for end in ends]
            rows.append([*map(escape, (group.env, group.name, group.protocol)), *cells])
    title = [f"## Differences to {escape(method)}", ""]
    if not rows:
        return [*title, "No other method has runs of the same environment and conditions.", ""]
    header = ["environment", "method", "conditions", "after offline", "after online"]
    return [*title, PAIRED, "", *markdown(header, rows)]


# ---- records -----------------------------------------------------------------------------------------------------


def table_records(table: ResultTable, groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Every number of a table as a record of tables.csv: the paper's, then ours."""
    published = [
        {"table": table.number, "phase": phase, "row": row.label, "column": column.label}
        | {"env": column.envs[0] if len(column.envs) == 1 else "", "by": "paper"}
        | table.numbers[row.label, column.label, phase]._asdict()
        for row in table.rows
        for column in table.columns
        for phase in table.phases
    ]
    rows = [(row.label, matching(table, row, groups)) for row in table.rows]
    rows += not_in_paper(table, groups).items()
    return published + [
        record for label, members in rows for record in run_records(table, label, members)
    ]


def run_records(
    table: ResultTable | None, label: str, groups: Sequence[RunGroup]
) -> list[dict[str, Any]]:
    """Our results as records of tables.csv, one per environment, phase and set of conditions."""
    labels = {column.envs[0]: column.label for column in TWELVE}
    if table is not None:
        labels |= {c.envs[0]: c.label for c in table.columns if len(c.envs) == 1}
    lines = []
    for group in groups:
        for phase in table.phases if table else ("offline", "online"):
            found = group.summary(phase)
            line: dict[str, Any] = {"table": table.number if table else "", "phase": phase}
            line |= {"row": label, "column": labels.get(group.env, ""), "env": group.env}
            by = "published" if group.source else "peer" if group.peer else "ours"
            line |= {"by": by, "protocol": group.protocol}
            if found is not None:
                low, high = found.interval or (None, None)
                line |= {"mean": rounded(found.mean), "low": rounded(low), "high": rounded(high)}
                if found.seeds:
                    values = 100 * group.at_end(phase)
                    line |= {"seeds": found.seeds, "std": rounded(found.std)}
                    line["values"] = " ".join(f"{rounded(value):g}" for value in values)
            lines.append(line)
    return lines


def rounded(value: float | None) -> float | None:
    """Round to four decimals; 0.0 instead of -0.0."""
    return None if value is None else round(value, 4) + 0.0


def tables_with_runs(groups: Sequence[RunGroup]) -> set[int]:
    """Numbers of the result tables that match some run or log."""
    return {
        table.number
        for table in TABLES.values()
        if any(
            matches(table, row, group) for row in table.rows + table.variants for group in groups
        )
        or any(group.peer and group.env in table.envs for group in groups)
    }


def missing(table: ResultTable, groups: Sequence[RunGroup]) -> str:
    """Sentence on the number of cells with finished runs, and the command for the others."""
    cells = [(row, env) for row in table.rows for env in table.envs]
    filled = sum(
        any(
            group.env == env and len(group.at_end(table.phases[-1])) and matches(table, row, group)
            for group in groups
        )
        for row, env in cells
    )
    command = f"python -m wgflow_rl.sweep --table {table.number}"
    return f"{filled} of {len(cells)} combinations of row and task have finished runs; `{command}` runs the others."
