"""Compare the published numbers that a report prints with a folder of CSV files, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wgflow_rl.experiments.comparison import ARROW, BY, HIDDEN
from wgflow_rl.experiments.tables import (
    ATTRIBUTES,
    COLUMN_KEYS,
    LISTS,
    NUMBERS,
    ROW_KEYS,
    TABLES,
    Phase,
    key_of,
    records,
)

Cell = tuple[str, ...]


def differences(report: str, folder: Path) -> tuple[int, list[str]]:
    """Parse a report's Markdown and compare it with `tableN.csv` or `tableN_NAME.csv` in a folder.

    Returns:
        The number of cells in the folder, and one line for every cell that differs or that only one
        side has.

    Raises:
        FileNotFoundError: If the folder lacks a table.
    """
    count, lines = 0, []
    for number in NUMBERS:
        section = _section(report, number)
        if number in LISTS:
            wanted, printed = _list_cells(records(number, folder)), _printed_list(section)
        else:
            wanted = dict(_result_cells(records(number, folder)))
            printed = dict(_printed_results(section, TABLES[number].phases))
        count += len(wanted)
        lines += [
            f"Table {number}, {', '.join(key)}: printed {printed.get(key)!r}, "
            f"{folder} has {wanted.get(key)!r}"
            for key in wanted | printed
            if wanted.get(key) != printed.get(key)
        ]
    return count, lines


def _section(report: str, number: int) -> str:
    return report.partition(f"\n## Table {number}. ")[2].partition("\n## ")[0]


def _tables(section: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header, rows) of the Markdown tables of a section."""
    for block in section.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            header, _, *rows = [[c.strip() for c in line[1:-1].split("|")] for line in lines]
            yield header, rows


def _printed_results(section: str, phases: tuple[Phase, ...]) -> Iterator[tuple[Cell, Cell]]:
    for header, rows in _tables(section):
        for line in rows:
            row = dict(zip(header, line, strict=True))
            label = line[0]
            if row.pop(BY, None) != "paper":
                continue
            del row[header[0]]
            for column, text in row.items():
                if column in ATTRIBUTES:
                    yield (label, column), (text,)
                    continue
                for phase, number in zip(phases, text.split(ARROW), strict=True):
                    mean, _, std = number.partition(" ± ")
                    yield (label, column, phase), (mean, std)


def _result_cells(rows: list[dict[str, str]]) -> Iterator[tuple[Cell, Cell]]:
    for row in rows:
        label, column = row[key_of(row, ROW_KEYS)], row[key_of(row, COLUMN_KEYS)]
        yield (label, column, row.get("phase", "online")), (row["mean"], row.get("std", ""))
        for name in ATTRIBUTES:
            if name in row:
                yield (label, name), (row[name],)


def _printed_list(section: str) -> dict[Cell, Cell]:
    (table,) = _tables(section)
    header, rows = table
    return {
        (f"row {index}", name): (text,)
        for index, line in enumerate(rows, 1)
        for name, text in zip(header, line, strict=True)
    }


def _list_cells(rows: list[dict[str, str]]) -> dict[Cell, Cell]:
    return {
        (f"row {index}", name): (text,)
        for index, row in enumerate(rows, 1)
        for name, text in row.items()
        if name not in HIDDEN
    }
