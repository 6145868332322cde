"""The result tables of the paper (Koo et al. 2026, arXiv 2605.07727) as data: what was varied, and each number found.

A number is entered only when it was read in the place its `source` names; every other cell is None, and the report
prints "not found" there. `layout` says the same of a table's rows and columns: where they could not be read, they are
our reading of what the table varies, and only the runs they ask for depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["offline", "online"]  # success at the end of which phase

PAGE = "https://driftingpolicy.github.io/, table 'Main Offline-to-Online RL Results' (mean ± std over 5 seeds)"
LIST = (
    "https://www.wizwand.com/paper/6a0162badbc836b87d823326, which lists results of arXiv 2605.07727 without naming "
    "the method; read here as the paper's own (the puzzle-3x3 entry, 3, cannot be the best of its eleven)"
)
UNREAD = (
    "The published table could not be read: rows and columns are our reading of what it varies."
)


@dataclass(frozen=True)
class Number:
    """A published success rate in percent; `std` is None where only the mean was found."""

    mean: float
    std: float | None
    source: str


@dataclass(frozen=True)
class Row:
    """One method; `flags` are what its runs add to the preset (`python -m wgflow_rl.train --method ... FLAGS`)."""

    label: str
    method: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    label: str
    env: str
    group: str  # columns of one group are printed side by side


@dataclass(frozen=True)
class PaperTable:
    """Rows x columns x phases, and the numbers known of them."""

    number: int
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    phases: tuple[Phase, ...]
    layout: str
    cells: Mapping[tuple[str, str, Phase], Number] = field(default_factory=dict)
    preset: str = "paper"  # of train, under which its runs are made

    def published(self, row: Row, column: Column, phase: Phase) -> Number | None:
        return self.cells.get((row.label, column.env, phase))


def _cubes(size: str, tasks: Sequence[int], group: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"task{t}", f"cube-{size}-play-singletask-task{t}-v0", group) for t in tasks
    )


ROBOMIMIC = tuple(
    Column(name, f"{name}-mh-low_dim", "Robomimic") for name in ("lift", "square", "can")
)
DOUBLE = _cubes("double", (2, 3, 4), "Cube-double")
TRIPLE = _cubes("triple", (2, 3, 4), "Cube-triple")
QUADRUPLE = _cubes(
    "quadruple", (2, 3, 4), "Cube-quadruple-100m"
)  # the data are OGBench's 100M-row set
TWELVE = ROBOMIMIC + DOUBLE + TRIPLE + QUADRUPLE
HARD = TRIPLE + QUADRUPLE

BASELINES = (
    Row("BFN", "bfn"),
    Row("QC-BFN", "qc-bfn"),
    Row("FQL", "fql"),
    Row("QC-FQL", "qc-fql"),
    Row("MVP", "mvp"),
)
DFP = Row("DFP", "dfp")
ABLATION = (
    Row("MVP", "mvp"),
    Row("MVP + top-K", "mvp-topk"),
    Row("DFP w/o top-K", "dfp-no-topk"),
    DFP,
)

MAIN = """
BFN     97.6±2  32.8±8 82.0±2  86.0±5 88.8±5 27.2±8   7.6±9  6.8±3  0.0±0   32.4±21 0.0±0  0.0±0
QC-BFN  99.6±1  88.4±4 90.6±3  99.8±0 99.8±0 92.6±6  87.4±10 80.8±4 33.4±9  95.8±2 63.2±10 74.2±11
FQL     96.8±2  10.8±7 58.4±8  93.2±8 91.2±5  6.0±6   0.4±1  6.4±8  0.0±0    0.0±0 0.0±0  0.0±0
QC-FQL 100.0±0  72.0±9 94.4±2 100.0±0 99.8±0 99.8±0  88.2±2 60.4±12 51.4±24 98.0±2 85.0±7 92.2±7
MVP     99.8±0  79.4±4 83.6±5  98.4±1 98.6±1 94.8±4  86.2±4 57.2±10 31.0±20 96.6±2 47.2±30 91.2±2
DFP    100.0±0  93.2±2 90.6±3 100.0±0 99.6±1 99.6±1  98.4±1 91.6±2 81.2±6   99.6±1 96.6±2 99.0±2
"""


def _main() -> dict[tuple[str, str, Phase], Number]:
    cells = {}
    for line in MAIN.strip().splitlines():
        label, *entries = line.split()
        for column, entry in zip(TWELVE, entries, strict=True):
            mean, std = map(float, entry.split("±"))
            cells[label, column.env, "online"] = Number(mean, std, PAGE)
    return cells


def _listed(
    label: str, columns: Sequence[Column], means: Sequence[float]
) -> dict[tuple[str, str, Phase], Number]:
    pairs = zip(columns, means, strict=True)
    return {(label, column.env, "offline"): Number(mean, None, LIST) for column, mean in pairs}


OFFLINE_TASKS = (
    Column("cube-single", "cube-single-play-singletask-task2-v0", "OGBench, default tasks"),
    Column("cube-double", "cube-double-play-singletask-task2-v0", "OGBench, default tasks"),
    Column("scene", "scene-play-singletask-task2-v0", "OGBench, default tasks"),
    Column("puzzle-3x3", "puzzle-3x3-play-singletask-task4-v0", "OGBench, default tasks"),
    Column("puzzle-4x4", "puzzle-4x4-play-singletask-task4-v0", "OGBench, default tasks"),
)
OFFLINE_ROWS = tuple(
    Row(name, name.lower())
    for name in ("BC", "IQL", "ReBRAC", "IDQL", "SRPO", "CAC", "FAWAC", "FBRAC", "IFQL", "FQL")
)

TABLES = {
    table.number: table
    for table in (
        PaperTable(
            1,
            "Offline-to-online: success after the online phase",
            (*BASELINES, DFP),
            TWELVE,
            ("online",),
            "Rows, columns and numbers as on the project page.",
            _main(),
        ),
        PaperTable(2, "The top-K term on two backbones", ABLATION, HARD, ("online",), UNREAD),
        PaperTable(
            3,
            "Weight of the top-K term",
            tuple(
                Row(f"DFP, weight {w:g}", "dfp", ("--lam", f"{w:g}")) for w in (0.1, 0.25, 0.5, 1.0)
            ),
            HARD,
            ("online",),
            UNREAD + " The values of the weight are ours; 0.5 is the default.",
        ),
        PaperTable(
            4,
            "Number K of selected actions",
            tuple(Row(f"DFP, K = {k}", "dfp", ("--top-k", str(k))) for k in (1, 2, 4, 8)),
            HARD,
            ("online",),
            UNREAD + " The values of K are ours; 4 is the default.",
        ),
        PaperTable(
            6,
            "Every offline-to-online method: success after the offline and after the online phase",
            (*BASELINES, *ABLATION[1:]),
            TWELVE,
            ("offline", "online"),
            UNREAD,
            _listed("DFP", (TRIPLE[0], TRIPLE[1], QUADRUPLE[0], QUADRUPLE[1]), (3.2, 7.6, 20, 5.6)),
        ),
        PaperTable(
            7,
            "Offline only",
            (*OFFLINE_ROWS, Row("DFP (offline)", "dfp")),
            OFFLINE_TASKS,
            ("offline",),
            UNREAD + " The five tasks and eleven methods are those named for it.",
            _listed("DFP (offline)", OFFLINE_TASKS, (95, 41, 93, 3, 20)),
            preset="paper-offline",
        ),
    )
}
COSTS = 9  # the table of computation costs: no success rates, so it has no rows here; the report fills it with times


@dataclass(frozen=True)
class PaperFigure:
    """Learning curves: one panel an environment, one line a row; `average` draws their mean in a single panel."""

    number: int
    title: str
    table: int
    average: bool = False


FIGURES = (
    PaperFigure(1, "Average over the tasks", 1, average=True),
    PaperFigure(3, "Offline, then online", 1),
    PaperFigure(4, "The top-K term on two backbones", 2),
    PaperFigure(5, "Weight of the top-K term", 3),
)
FIGURES_LAYOUT = "The published figures could not be read: which of them shows what is our reading of the paper's text."
