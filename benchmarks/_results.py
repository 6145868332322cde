"""Result files of the benchmarks: JSON with one row per line."""

import json
from pathlib import Path
from typing import Any

from wgflow_rl.utils.files import write_whole


def write_results(path: Path, record: dict[str, Any]) -> None:
    """Write `record` to `path`, wholly or not at all."""
    write_whole(path, _lines(record, indent="") + "\n")


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
