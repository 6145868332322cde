"""Compare the published numbers of this package with those of another folder of CSV files, cell by cell."""

from __future__ import annotations

from pathlib import Path

from wgflow_rl.experiments.comparison import HIDDEN
from wgflow_rl.experiments.tables import (
    ATTRIBUTES,
    COLUMN_KEYS,
    FOLDER,
    LISTS,
    NUMBERS,
    ROW_KEYS,
    key_of,
    records,
)


def differences(folder: Path) -> tuple[int, list[str]]:
    """Compare `tableN.csv` or `tableN_NAME.csv` in a folder with the published numbers that a report prints.

    Returns the number of cells in the folder, and a line for every cell that differs or that only one side has.
    """
    count, lines = 0, []
    for number in NUMBERS:
        wanted, printed = cells(number, folder), cells(number, FOLDER)
        count += len(wanted)
        lines += [
            f"Table {number}, {', '.join(key)}: printed {printed.get(key)!r}, "
            f"{folder} has {wanted.get(key)!r}"
            for key in wanted | printed
            if wanted.get(key) != printed.get(key)
        ]
    return count, lines


def cells(number: int, folder: Path) -> dict[tuple[str, ...], str]:
    """Texts of a table by (row, column, phase) and (row, attribute), or of a list by (row, column)."""
    rows = records(number, folder)
    if number in LISTS:
        return {
            (f"row {index}", name): text
            for index, row in enumerate(rows, 1)
            for name, text in row.items()
            if name not in HIDDEN
        }
    found = {}
    for row in rows:
        label, column = row[key_of(row, ROW_KEYS)], row[key_of(row, COLUMN_KEYS)]
        std = f" ± {row['std']}" if row.get("std") else ""
        found[label, column, row.get("phase", "online")] = row["mean"] + std
        found |= {(label, name): row[name] for name in ATTRIBUTES if name in row}
    return found
