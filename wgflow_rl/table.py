"""CSV tables that survive a kill: whole rows, flushed one by one, and cut back to a step on resume."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgflow_rl.files import write_whole


class Table:
    """A CSV file that grows by whole rows and can be cut back to a step.

    On resume the file is read up to the first incomplete row (a crash in the middle of a line), cut after
    `resume_step`, and written again whole.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], resume_step: int | None):
        self.path = path
        self.columns = list(columns)
        self.rows: list[dict[str, Any]] = []
        if resume_step is not None and path.exists():
            header, self.rows = read_rows(path)
            self.columns = header or self.columns
            self.rows = [row for row in self.rows if int(row["step"]) <= resume_step]
        self._rewrite()

    def add(self, row: Mapping[str, Any], *, durable: bool = False) -> None:
        """Append a row and hand it to the system; `durable` also waits for the disk."""
        self.rows.append({name: _cell(value) for name, value in row.items()})
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
        else:
            self._file.write(self._line(self.rows[-1]))
            self._file.flush()
        if durable:
            os.fsync(self._file.fileno())

    def last(self, column: str) -> float:
        """The column's value in the last row, 0 if there is none."""
        return float(self.rows[-1][column]) if self.rows else 0.0

    def close(self) -> None:
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
    whole = (
        Path(path).read_text(encoding="utf-8").rpartition("\n")[0]
    )  # what follows the last newline is half a row
    lines = list(csv.reader(io.StringIO(whole)))
    columns, rows = (lines[0], lines[1:]) if lines else ([], [])
    cut = next((i for i, row in enumerate(rows) if len(row) != len(columns)), len(rows))
    return columns, [dict(zip(columns, row, strict=True)) for row in rows[:cut]]


def _cell(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
