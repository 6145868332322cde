"""Learning curves of other code bases, as tables in one long form.

One row per evaluation, with a seed, or with the 95 % interval of a mean over seeds::

    env,method,step,seed,success
    env,method,step,success,low,high

A log `NAME/ENV.csv` of one method in one environment may omit env and method. Tables with a column method are taken to
be published curves on the official data of their environments.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import re
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from wgflow_rl import envs
from wgflow_rl.experiments.results import OFFICIAL, RunGroup
from wgflow_rl.experiments.tables import TWELVE

LARGEST = 1 << 26  # bytes of a file that is read, also when it is unpacked
MANY = 1000  # seeds of a curve; their bootstrap takes 80 kB each
FORMS = "[env,method,]step,seed,success or [env,method,]step,success,low,high"
_SHORT = {column.label: column.envs[0] for column in TWELVE}  # lift -> lift-mh-low_dim


def read_curves(path: Path, offline: int | None = None) -> list[RunGroup] | None:
    """Read the curves of a CSV file, one group per environment and method; None for another table.

    Columns may be in any order, in capital letters and accompanied by others; the separator is a comma, a semicolon
    (then with decimal commas too) or a tab. The order of rows has no meaning.

    Args:
        path: file NAME.csv or NAME.csv.gz.
        offline: last step of the offline phase; None: unknown.

    Raises:
        ValueError: The message names file, line and column of what is malformed, and what was wanted.
    """
    found = _cells(path)
    if found is None:
        return None
    cells, separator = found
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    source = stem if "method" in cells else ""
    cells = pd.DataFrame({"env": stem, "method": path.parent.name}, cells.index).assign(**cells)
    table: Any = _numbers(path, cells, separator)
    groups = []
    for (env, method), rows in table.groupby(["env", "method"]):
        if (seeds := rows["seed"].nunique()) > MANY:
            raise ValueError(f"{path} has {seeds:,} seeds of {method}; wanted at most {MANY:,}")
        groups.append(
            RunGroup(
                method,
                env,
                rows.drop(columns=["env", "method"]).reset_index(drop=True),
                offline,
                conditions=(f"published in {path.name}", OFFICIAL) if source else ("its own code",),
                folder=path.parent,
                peer=True,
                source=source,
                data=OFFICIAL if source else "",
            )
        )
    return groups


def _cells(path: Path) -> tuple[pd.DataFrame, str] | None:
    """Read (texts of the columns of a log by line number, separator); None for another table."""
    text = read_text(path, errors="replace")  # of a table that is no log, nothing is asked
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    names, *lines = list(csv.reader(io.StringIO(text), delimiter=separator)) or [[]]
    names = [name.strip().lower() for name in names]
    numeric = _columns(path, names)
    if numeric is None:
        return None
    lines = [[*map(str.strip, line), *[""] * len(names)][: len(names)] for line in lines]
    cells: Any = pd.DataFrame(lines, columns=names, index=range(2, len(lines) + 2), dtype=str)
    cells = cells[[name for name in ("env", "method", *numeric) if name in names]]
    cells = cells[(cells != "").any(axis=1)]
    if cells.empty:
        raise ValueError(f"{path} has a header and no rows; wanted {FORMS}")
    return cells, separator


def _numbers(path: Path, cells: Any, separator: str) -> pd.DataFrame:
    """Parse and check the cells of a log: columns env, method, seed, step, success[, low, high], sorted.

    Raises:
        ValueError: The message names file, line and column.
    """
    table = cells[["env", "method"]].assign(seed=0)

    def require(good: Any, name: str, wanted: str) -> None:
        if not good.all():
            line = good.idxmin()  # the first that is not good
            cell = f"{path}, line {line}, column {name}: {cells[name][line]!r}"
            raise ValueError(f"{cell}; wanted {wanted}")

    for name in cells.columns.drop(["env", "method"]):
        table[name] = values = cells[name].map(lambda cell: _number(cell, separator))
        if name in ("step", "seed"):
            require((values % 1 == 0) & values.between(0, 2**53), name, "a whole number from 0 on")
            table[name] = values.astype(int)
        else:
            require(values.between(0, 1), name, "a fraction between 0 and 1")
    if "low" in cells:
        require(table["low"] <= table["success"], "low", "at most success")
        require(table["high"] >= table["success"], "high", "at least success")
    require(table["method"] != "", "method", "a name")
    known = {}
    for name in table["env"].unique():
        try:
            known[name] = environment(name)
        except ValueError as error:
            require(table["env"] != name, "env", f"an environment: {error}")
    table["env"] = table["env"].map(known)
    table = table.drop_duplicates()
    again = table.duplicated(["env", "method", "seed", "step"])
    require(~again, "step", "one success per seed and step of a curve")
    return table.sort_values(["env", "method", "seed", "step"])


def environment(name: str) -> str:
    """Our name of an environment.

    Q-chunking's names are translated: cube-double-play-task2 is cube-double-play-singletask-task2-v0; lift, can and
    square are the multi-human sets of Table 1. An average over tasks, such as cube-double-play, keeps its name.

    Raises:
        ValueError: If the environment is unknown.
    """
    name = _SHORT.get(name, name)
    name = re.sub(r"-(play|navigate)-task([1-5])$", r"-\1-singletask-task\2-v0", name)
    envs.parse(f"{name}-singletask-v0" if name.endswith(("-play", "-navigate")) else name)
    return name


def _columns(path: Path, names: list[str]) -> list[str] | None:
    """The columns with numbers; None for a table that is no log. Raises: ValueError for a log that lacks one."""
    with_interval = "seed" not in names and ("low" in names or "high" in names)
    columns = ["step", "success", "low", "high"] if with_interval else ["step", "seed", "success"]
    missing = [name for name in columns if name not in names]
    if missing:  # tables of this package, such as eval.csv, have phases
        is_log = {"env", "method"} <= set(names) or {"step", "success"} <= set(names)
        if "phase" in names or not is_log:
            return None
        raise ValueError(f"{path}, line 1, has no column {missing[0]}; wanted {FORMS}")
    for name in (*columns, "env", "method"):
        if names.count(name) > 1:
            raise ValueError(f"{path}, line 1, has two columns {name}; wanted {FORMS}")
    return columns


def _number(cell: str, separator: str) -> float:
    """Parse a number; nan for anything else."""
    try:
        return float(cell.replace(",", ".") if separator == ";" else cell)
    except ValueError:
        return math.nan


def check_regular(path: Path) -> None:
    """Raise ValueError for a pipe or a device, which could block for ever, or a file of more than LARGEST bytes."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is not a regular file of at most {LARGEST:,} bytes")


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Read a text file, compressed if its name ends with .gz, with or without a byte-order mark.

    Raises:
        ValueError: For bytes that are no text, or no gzip file, and for more than LARGEST bytes.
    """
    check_regular(path)
    contents = path.read_bytes()
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(contents)) as file:
                contents = file.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from error
        if len(contents) > LARGEST:
            raise ValueError(f"{path} has more than {LARGEST:,} bytes when it is unpacked")
    utf16 = contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return contents.decode("utf-16" if utf16 else "utf-8", errors).lstrip("\ufeff")
