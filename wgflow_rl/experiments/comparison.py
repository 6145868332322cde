"""A table of the paper with our runs beside its numbers: as Markdown, and as records for a CSV file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from wgflow_rl import envs
from wgflow_rl.agents import methods
from wgflow_rl.experiments.tables import TABLES, Number, PaperTable, Phase, Row
from wgflow_rl.experiments.results import Arm, summary

MISSING = "—"
OFFLINE = "paper-offline"  # the preset of the offline table
COLUMNS = (
    *(
        "table",
        "phase",
        "row",
        "env",
        "by",
        "protocol",
        "seeds",
        "mean",
        "std",
        "low",
        "high",
        "values",
        "source",
    ),
)


def fits(table: PaperTable, row: Row, arm: Arm) -> bool:
    """Whether an arm is this row of a table: its method, and no setting of the agent changed but the row's.

    The offline table is one of single actions: a run of chunks does not stand in it, nor its runs in other tables.
    """
    if arm.peer or arm.method != row.method:
        return False
    if (table.preset == OFFLINE and arm.agent.get("chunk", 1) != 1) or (
        arm.preset == OFFLINE != table.preset
    ):
        return False
    wanted = {
        name.removeprefix("--").replace("-", "_"): float(value)
        for name, value in zip(row.flags[::2], row.flags[1::2], strict=True)
    }
    return not arm.changed.keys() - wanted.keys() and all(
        float(arm.agent[name]) == value for name, value in wanted.items() if name in arm.agent
    )


def cell(arm: Arm | None, phase: Phase) -> str:
    """97.2 ± 1.3 [96.1, 98.3] (5), in percent; a dash where no run has come to the end of the phase."""
    found = None if arm is None else summary(100 * arm.at_end(phase))
    if found is None:
        return MISSING
    if found.interval is None:
        return f"{found.mean:.1f} (1)"
    low, high = found.interval
    return f"{found.mean:.1f} ± {found.std:.1f} [{low:.1f}, {high:.1f}] ({found.seeds})"


def said(number: Number | None) -> str:
    if number is None:
        return "not found"
    return f"{number.mean:g}" if number.std is None else f"{number.mean:.1f} ± {number.std:g}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)] + [""]


def table_lines(table: PaperTable, arms: Sequence[Arm], records: list[dict[str, Any]]) -> list[str]:
    """One table as Markdown, group of columns by group; every number also becomes a record for tables.csv."""
    lines = [f"## Table {table.number}. {table.title}", "", table.layout, ""]
    groups = {
        column.group: [c for c in table.columns if c.group == column.group]
        for column in table.columns
    }
    inside = {column.env for column in table.columns}
    peers = sorted({arm.method for arm in arms if arm.peer and arm.env in inside})
    for phase in table.phases:
        for group, columns in groups.items():
            rows = []
            for row in table.rows:
                known = [table.published(row, column, phase) for column in columns]
                rows.append([row.label, "paper", *map(said, known)])
                records += [
                    record(table, phase, row.label, c.env, "paper", number=n)
                    for c, n in zip(columns, known, strict=True)
                ]
                mine = [arm for arm in arms if fits(table, row, arm)]
                here = {column.env for column in columns}
                protocols = sorted({arm.protocol for arm in mine if arm.env in here}) or [""]
                for protocol in protocols:
                    found = {arm.env: arm for arm in mine if arm.protocol == protocol}
                    rows.append(
                        [
                            "",
                            f"ours: {protocol}" if protocol else "ours",
                            *(cell(found.get(c.env), phase) for c in columns),
                        ]
                    )
                    records += [
                        record(table, phase, row.label, c.env, "ours", found.get(c.env))
                        for c in columns
                    ]
            for peer in peers:
                found = {arm.env: arm for arm in arms if arm.peer and arm.method == peer}
                rows.append(
                    [peer, "its own code", *(cell(found.get(c.env), phase) for c in columns)]
                )
                records += [
                    record(table, phase, peer, c.env, "peer", found.get(c.env)) for c in columns
                ]
            after = f"success after the {phase} phase, %"
            lines += [f"**{group}**, {after}", ""]
            lines += markdown(["method", "", *(column.label for column in columns)], rows)
    return lines + missing(table, arms)


def missing(table: PaperTable, arms: Sequence[Arm]) -> list[str]:
    """Which cells have no finished run, and the commands that would fill them."""
    empty: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    known, absent, count = set(envs.names()), set(), 0
    for row in table.rows:
        filled = {
            arm.env for arm in arms if fits(table, row, arm) and len(arm.at_end(table.phases[-1]))
        }
        gone = [column.env for column in table.columns if column.env not in filled]
        count += len(gone)
        absent |= {env for env in gone if env not in known}
        if row.method not in methods.METHODS:
            absent.add(row.method)
        elif possible := tuple(env for env in gone if env in known):
            empty[possible].append(row)
    if not count:
        return []
    cells = len(table.rows) * len(table.columns)
    lines = [
        f"Missing: {count} of {cells} cells. These commands run what they need, 5 seeds each:",
        "",
        "```",
    ]
    if count == cells:
        lines.append(f"python -m wgflow_rl.sweep --table {table.number} --seeds 5")
    else:
        for places, rows in empty.items():
            plain = [row for row in rows if not row.flags]
            each = [([row.method], row.flags) for row in rows if row.flags]
            for names, flags in [([row.method for row in plain], ()), *each] if plain else each:
                lines.append(
                    f"python -m wgflow_rl.sweep --preset {table.preset} --seeds 5 --methods {' '.join(names)} "
                    f"--envs {' '.join(places)} {' '.join(flags)}".rstrip()
                )
    lines += ["```", ""]
    if absent:
        lines += [f"Not in this version: {', '.join(sorted(absent))}.", ""]
    return lines


def record(
    table: PaperTable,
    phase: Phase,
    row: str,
    env: str,
    by: str,
    arm: Arm | None = None,
    number: Number | None = None,
) -> dict[str, Any]:
    """A line of tables.csv."""
    line: dict[str, Any] = {"table": table.number, "phase": phase, "row": row, "env": env, "by": by}
    if number is not None:
        line |= {
            "mean": number.mean,
            "std": "" if number.std is None else number.std,
            "source": number.source,
        }
    if arm is not None:
        line |= {"protocol": arm.protocol} | numbers(arm, phase)
    return line


def numbers(arm: Arm, phase: Phase) -> dict[str, Any]:
    values = 100 * arm.at_end(phase)
    found = summary(values)
    if found is None:
        return {}
    low, high = found.interval or ("", "")
    return {
        "seeds": found.seeds,
        "mean": round(found.mean, 4),
        "std": "" if found.interval is None else round(found.std, 4),
        "low": low,
        "high": high,
        "values": " ".join(f"{value:g}" for value in values),
    }


def sources() -> list[str]:
    """Where the published numbers were read."""
    found: dict[str, set[int]] = defaultdict(set)
    for table in TABLES.values():
        for number in table.cells.values():
            found[number.source].add(table.number)
    cited = [
        f"- {source} (Table {', '.join(map(str, sorted(tables)))})"
        for source, tables in found.items()
    ]
    return [
        "## Sources of the published numbers",
        "",
        *cited,
        "",
        "Every other published number: not found.",
        "",
    ]
