"""Append-only CSV tables that survive a kill and can be truncated on resume."""

import csv
import io
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgflow_rl.utils.files import naming_errors, require_regular, write_whole


class Table:
    """A CSV file to which whole rows are appended.

    On resume the file is read up to its last newline (a kill can leave half a row after it),
    truncated after `resume_step` and rewritten. At a complete line that is not a valid row, a
    RuntimeWarning is issued, and this line and all following ones are dropped.

    Args:
        path: path of the file.
        columns: first columns, including "step" and "wall_s".
        resume_step: last step to keep; None starts a new file.

    Raises:
        ValueError: On resume if the file starts with other columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], resume_step: int | None):
        self.path = path
        self.columns = list(columns)
        self.rows: list[dict[str, Any]] = []
        if resume_step is not None and path.exists():
            header, lines = _lines(path)
            if header and header[: len(columns)] != self.columns:
                raise ValueError(
                    f"{path} is damaged: it begins with {','.join(header)[:80]!r}, wanted {','.join(columns)}. Delete "
                    "it to go on without its rows."
                )
            self.columns = header or self.columns
            self._keep(lines, columns, resume_step)
        self._rewrite()

    def _keep(self, lines: list[list[str]], needed: tuple[str, ...], resume_step: int) -> None:
        before = -1
        for number, line in enumerate(lines, start=2):
            row = dict(zip(self.columns, line, strict=False))
            if (
                len(line) != len(self.columns)
                or not _is_row(row, needed)
                or int(row["step"]) <= before
            ):
                warnings.warn(
                    f"{self.path} is damaged: line {number} is no row of it. It is dropped, with all lines after it.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            before = int(row["step"])
            if before <= resume_step:
                self.rows.append(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, which survives a kill of the process and, after `sync`, a power cut."""
        self.rows.append({name: _cell(value) for name, value in row.items()})
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
        else:
            with naming_errors(self.path):
                self._file.write(self._line(self.rows[-1]))
                self._file.flush()

    def sync(self) -> None:
        """Flush the rows to the disk."""
        with naming_errors(self.path):
            os.fsync(self._file.fileno())

    def last(self, column: str) -> float:
        """Value of a column in the last row; 0 without rows."""
        return float(self.rows[-1][column]) if self.rows else 0.0

    def close(self) -> None:
        with naming_errors(self.path):
            self._file.close()

    def _rewrite(self) -> None:
        header = self._line({name: name for name in self.columns})
        write_whole(self.path, header + "".join(map(self._line, self.rows)))
        if hasattr(self, "_file"):
            self._file.close()
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def _line(self, row: Mapping[str, str]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in self.columns])
        return text.getvalue()


def read_rows(path: str | os.PathLike[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Read (columns, rows) of a run's CSV file, up to the first incomplete row."""
    columns, lines = _lines(path)
    cut = next((i for i, line in enumerate(lines) if len(line) != len(columns)), len(lines))
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[:cut]]


def read_numbers(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of a run's CSV file as `read_rows`: steps as integers, phases as text, all else as floats."""
    kinds = {"step": int, "phase": str}
    _, rows = read_rows(path)
    return [{k: kinds.get(k, float)(v or "nan") for k, v in row.items()} for row in rows]


def score_of(row: Mapping[str, Any]) -> float:
    """Score of an evaluation, a row of eval.csv; its success rate where the environment has no score."""
    score = row.get("score", "")
    return float(row["success"] if score == "" or math.isnan(float(score)) else score)


def _lines(path: str | os.PathLike[str]) -> tuple[list[str], list[list[str]]]:
    """Read (header, cells of the other lines); an empty line marks the position of a CSV error."""
    require_regular(path)
    # Ignore what follows the last newline: an incomplete row.
    whole = Path(path).read_bytes().decode(errors="replace").rpartition("\n")[0]
    lines: list[list[str]] = []
    try:
        lines.extend(csv.reader(io.StringIO(whole)))
    except csv.Error:
        lines.append([])
    return (lines[0], lines[1:]) if lines else ([], [])


def _is_row(row: Mapping[str, str], needed: tuple[str, ...]) -> bool:
    """Return True if all cells but the phase are numbers or empty, and those of `needed` finite."""
    try:
        numbers = {name: float(cell or "nan") for name, cell in row.items() if name != "phase"}
        return int(row["step"]) >= 0 and all(
            math.isfinite(numbers.get(name, 0.0)) for name in needed
        )
    except ValueError:
        return False


def _cell(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
