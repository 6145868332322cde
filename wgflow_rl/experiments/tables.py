"""The tables of the paper (Koo et al. 2026, arXiv 2605.07727v1): published numbers and the runs they ask for.

Every number is a row of `published/tableN.csv`, spelled as printed, with the section that discusses it and, where the
paper leaves one, a doubt. Rows, columns and phases of a table are those of its file; this module adds the method and
the settings behind a row, and the environments behind a column.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Phase = Literal["offline", "online"]  # success at the end of which phase

PAPER = "Koo et al. 2026, arXiv 2605.07727v1 (CC BY 4.0)"
FOLDER = Path(__file__).with_name("published")

ROW_KEYS = ("method", "lambda", "K")  # the column of a CSV file that names the rows of its table
COLUMN_KEYS = ("task", "environment_group")  # and the one that names the columns
ATTRIBUTES = ("category", "backbone", "top_k_term")  # columns of the paper that describe a row

# others: the label in lower case
METHODS = {"MVP w/ top-K": "mvp-topk", "DFP w/o top-K": "dfp-no-topk"}
VARIANTS = {  # rows that are not in the paper: DFP with another field, settings otherwise equal
    "dfp-published": "DFP (published code's field)",
    "dfp-ml-energy": "DFP, likelihood + energy field (ours)",
}
GROUPS = {
    "Robo.": "-mh-",
    "Cube-2.": "cube-double",
    "Cube-3.": "cube-triple",
    "Cube-4.": "cube-quad",
}


class Number(NamedTuple):
    """A published success rate in percent, as printed; `std` is empty where none is printed."""

    mean: str
    std: str = ""

    def __str__(self) -> str:
        return f"{self.mean} ± {self.std}" if self.std else self.mean


@dataclass(frozen=True)
class Row:
    """A method with the agent settings that the table varies; `attributes` are further cells of the paper's row."""

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> tuple[str, ...]:
        """The settings as flags of `python -m wgflow_rl.train`."""
        return tuple(
            word
            for name, value in self.settings.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        )


@dataclass(frozen=True)
class Column:
    """One task, or the average over several."""

    label: str
    envs: tuple[str, ...]


@dataclass(frozen=True)
class ResultTable:
    """A table of success rates: rows, columns, phases, and how its runs are made."""

    number: int
    title: str
    section: str
    varies: str  # header of the row labels
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    phases: tuple[Phase, ...]
    numbers: Mapping[tuple[str, str, Phase], Number]
    preset: str = "paper"
    seeds: int = 5
    note: str = ""

    @property
    def laptop(self) -> str:
        """The preset of the table at laptop size."""
        return self.preset.replace("paper", "laptop")

    @property
    def envs(self) -> tuple[str, ...]:
        """Every environment of the table once, in the order of its columns."""
        return tuple(dict.fromkeys(env for column in self.columns for env in column.envs))

    @property
    def variants(self) -> tuple[Row, ...]:
        """DFP's rows with the fields of `VARIANTS`, which the paper does not have."""
        return tuple(
            Row(name + f", {self.varies} = {row.label}" * bool(row.settings), method, row.settings)
            for method, name in VARIANTS.items()
            for row in self.rows
            if row.method == "dfp"
        )


def records(number: int, folder: Path = FOLDER) -> list[dict[str, str]]:
    """The rows of a table's CSV file, `tableN.csv` or `tableN_NAME.csv`, as text.

    Raises:
        FileNotFoundError: If the folder has no file of this table.
    """
    found = sorted([*folder.glob(f"table{number}.csv"), *folder.glob(f"table{number}_*.csv")])
    if not found:
        raise FileNotFoundError(f"{folder} has no table{number}.csv and no table{number}_*.csv")
    with found[0].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]]) -> Iterator[tuple[tuple[str, str, Phase], Number]]:
    """((row label, column label, phase), number) of every row of a result table's CSV file."""
    for row in rows:
        phase: Phase = "offline" if row.get("phase") == "offline" else "online"
        key = row[key_of(row, ROW_KEYS)], row[key_of(row, COLUMN_KEYS)], phase
        yield key, Number(row["mean"], row.get("std", ""))


def key_of(row: Mapping[str, str], keys: tuple[str, ...]) -> str:
    """The first of the keys that the row has. Raises: ValueError if it has none."""
    found = next((key for key in keys if key in row), None)
    if found is None:
        raise ValueError(f"columns are {', '.join(row)}; wanted one of {', '.join(keys)}")
    return found


def _result_table(
    number: int,
    title: str,
    settings: Callable[[str], Mapping[str, Any]] | None = None,
    **options: Any,
) -> ResultTable:
    """Read a table of success rates. `settings`, of a row label, makes every row a DFP with these agent settings."""
    rows = records(number)
    varies, across = key_of(rows[0], ROW_KEYS), key_of(rows[0], COLUMN_KEYS)
    attributes = [name for name in ATTRIBUTES if name in rows[0]]
    lines = {row[varies]: {name: row[name] for name in attributes} for row in rows}
    tasks = {row[across]: row.get("env", "") for row in rows}
    envs = [env for env in tasks.values() if env] or [column.envs[0] for column in TWELVE]
    return ResultTable(
        number,
        title,
        rows[0]["section"],
        varies,
        tuple(
            Row(label, "dfp", settings(label), about)
            if settings
            else Row(label, METHODS.get(label, label.lower()), {}, about)
            for label, about in lines.items()
        ),
        tuple(
            Column(label, (env,) if env else tuple(e for e in envs if GROUPS.get(label, "") in e))
            for label, env in tasks.items()
        ),
        tuple(dict.fromkeys(phase for (_, _, phase), _ in numbers(rows))),
        dict(numbers(rows)),
        **options,
    )


_MAIN = _result_table(
    1,
    "Success rate (%), offline-to-online RL",
    note="Standard deviations are printed as integers here and with one decimal in Table 6. Cube-quadruple: the "
    "paper's data are OGBench's set of 100M rows.",
)
TWELVE = tuple(column for column in _MAIN.columns if len(column.envs) == 1)

TABLES: dict[int, ResultTable] = {
    table.number: table
    for table in (
        _MAIN,
        _result_table(2, "Ablation of the top-K term on two backbones, success rate (%)"),
        _result_table(
            3,
            "Weight lambda of the top-K term, success rate (%)",
            lambda label: {"lam": float(label)},
        ),
        _result_table(
            4,
            "Number K of positives, success rate (%) averaged over tasks",
            lambda label: {"top_k": int(label)},
            note="The paper prints means over tasks and seeds, without standard deviations.",
        ),
        _result_table(6, "Full results, offline → online, success rate (%)"),
        _result_table(
            7,
            "Offline RL on default OGBench tasks, success rate (%)",
            preset="paper-offline",
            seeds=8,
        ),
    )
}
LISTS: dict[int, str] = {  # tables without success rates, which ask for no runs
    5: "Hyper-parameters",
    8: "Task-specific hyper-parameters of DFP in offline RL",
    9: "Cost in milliseconds per online training step and per inference step, averaged over 12 tasks",
    10: "GPU-hours on RTX 3090, over all tasks and seeds",
}
NUMBERS = tuple(sorted({*TABLES, *LISTS}))


@dataclass(frozen=True)
class Figure:
    """Learning curves: one panel per environment whose name contains `part`, one line per row of a table."""

    number: int
    title: str
    table: int
    part: str = ""
    online_only: bool = True

    @property
    def panels(self) -> dict[str, str]:
        """{environment: title of its panel}."""
        return {env: column.label for column in TWELVE for env in column.envs if self.part in env}


FIGURES = (
    Figure(1, "Success rate over training steps", 1, online_only=False),
    Figure(3, "Backbone x loss ablation, online phase", 2, "cube-triple"),
    Figure(4, "Number K of positives, online phase", 4),
    Figure(5, "Weight lambda of the top-K term, online phase", 3, "cube-quadruple"),
)
NOT_DRAWN = "Figure 2 shows pictures of the twelve tasks and is not drawn."
