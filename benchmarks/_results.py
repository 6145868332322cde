"""Result files of the benchmarks, JSON with one row per line, and their tables in Markdown."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from _provenance import provenance

from wgflow_rl.utils.files import write_whole

RESULTS = Path(__file__).parent / "results"


def write_results(path: Path, record: dict[str, Any]) -> None:
    """Write `record` to `path`, wholly or not at all."""
    write_whole(path, _lines(record, indent="") + "\n")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def begun(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of `path`, or `record` if there is no such file.

    Raises: SystemExit if the file was made with another setup than that of `record`.
    """
    record["setup"] = json.loads(json.dumps(record["setup"]))
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else record
    if found["setup"] != record["setup"]:
        raise SystemExit(
            f"{path} was made with another setup; give another --out or move that file away."
        )
    return found


class ResultFile:
    """Lists of rows that are written as they are computed; a second call goes on where the first stopped.

    With `table`, its Markdown is written beside the rows each time. Raises: see `begun`.
    """

    def __init__(
        self,
        path: Path,
        setup: dict[str, Any],
        lists: Sequence[str],
        table: Callable[[dict[str, Any]], str] | None = None,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.table, self.made_by = path, table, provenance()
        self.record = begun(path, {"setup": setup, "made_by": []} | {name: [] for name in lists})

    def row(self, name: str, key: dict[str, Any], compute: Callable[[], dict]) -> dict[str, Any]:
        """The row of a list with this key; without one it is computed."""
        rows = self.record[name]
        for done in rows:
            if key.items() <= done.items():
                return done
        rows.append(key | compute())
        if self.made_by not in self.record["made_by"]:
            self.record["made_by"].append(self.made_by)
        write_results(self.path, self.record)
        if self.table is not None:
            write_whole(self.path.with_suffix(".md"), self.table(self.record))
        print(name, {k: v for k, v in rows[-1].items() if k != "points"}, flush=True)
        return rows[-1]


def markdown(header: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; the columns of the header are separated by " | "."""
    rule = "|---" * len(header.split(" | ")) + "|"
    return [f"| {header} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def plus_minus(values: Sequence[float], digits: int) -> str:
    """Format a mean ± the standard deviation, or the only value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _lines(value: Any, indent: str) -> str:
    """JSON of `value` with a line per entry of the record and a line per object of every list of objects."""
    if indent and not _holds_rows(value):
        return json.dumps(value)
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{deeper}{json.dumps(key)}: {_lines(v, deeper)}" for key, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    items = [deeper + _lines(v, deeper) for v in value]
    return "[\n" + ",\n".join(items) + f"\n{indent}]"


def _holds_rows(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_rows(v) for v in value.values())
    return isinstance(value, list) and any(isinstance(v, dict) or _holds_rows(v) for v in value)
