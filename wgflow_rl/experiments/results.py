"""Results of runs, grouped by configuration: numbers of a phase, curves, statistics over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wgflow_rl.experiments.tables import Phase

GENERATED = "generated data"
OFFICIAL = "official data"


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seeds only.

    `evaluations` has one row per evaluation with columns seed, step and success (a fraction),
    sorted by seed and step; a curve that was published as means has the columns low and high too,
    its 95 % interval, and one seed. `changed` are the agent's settings that differ from the preset;
    `conditions` describe preset, steps and data.
    """

    method: str
    env: str
    evaluations: pd.DataFrame
    offline: int | None = None  # steps of the offline phase; None if unknown
    total: int | None = None  # steps of both phases; None if unknown
    preset: str = ""
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    folder: Path = Path()  # folder of one of the runs
    peer: bool = False  # True for a log of another code base
    source: str = ""  # file of published curves without its suffix; "" for others
    data: str = ""  # GENERATED, OFFICIAL or a folder's name; "" if unknown

    @property
    def protocol(self) -> str:
        return ", ".join(self.conditions)

    @property
    def name(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return " ".join([self.method, *assignments(self.changed)]) + source

    def summary(self, phase: Phase) -> Summary | None:
        """Success in percent at the end of a phase; None if no run has finished it."""
        found = summary(100 * self.at_end(phase))
        if found is None or "low" not in self.evaluations:
            return found
        low, high = (100 * self.at_end(phase, column).item() for column in ("low", "high"))
        return Summary(found.mean, float("nan"), (low, high), 0)

    def at_end(self, phase: Phase, column: str = "success") -> pd.Series:
        """A column at the last evaluation of a phase, for the seeds that have finished it."""
        rows: Any = self.evaluations  # Any: pandas without stubs confuses the type checker
        last = rows.groupby("seed").tail(1).set_index("seed")
        if phase == "online":
            online = last["step"] > (self.offline or 0)
            return last[column][online & self._complete(last["step"])]
        if not self.offline:
            return last[column][:0]
        finished = last.index[last["step"] >= self.offline]
        rows = rows[rows["seed"].isin(finished) & (rows["step"] <= self.offline)]
        return rows.groupby("seed")[column].last()

    def _complete(self, last: Any) -> Any:
        """Which seeds have reached the end, from their last steps.

        The log of another code base does not tell its end: that of the longest seed counts, and a seed lacks less than
        one interval between evaluations.
        """
        if self.total is not None:
            return last == self.total
        rows: Any = self.evaluations
        longest = rows.loc[rows["step"].idxmax(), "seed"]
        steps = rows.loc[rows["seed"] == longest, "step"]
        return (last == steps.max()) | (last + steps.diff().median() > steps.max())

    def curve(self) -> pd.DataFrame:
        """Success by step (rows) and seed (columns), at steps with an evaluation of every seed."""
        return self.evaluations.pivot(index="step", columns="seed", values="success").dropna()

    @property
    def curve_is_cut(self) -> str:
        """Sentence on the part of the evaluations that `curve` leaves out; empty if there is none."""
        last: Any = self.evaluations.groupby("seed")["step"].max()
        steps: Any = self.curve().index
        if not len(steps):
            return f"{self.name}: no curve, since no step has an evaluation of each of its {len(last)} seeds."
        if steps[-1] == last.max():
            return ""
        return (
            f"{self.name}: the curve ends at step {abbreviate(int(steps[-1]))}, the last with all {len(last)} seeds; "
            f"the longest reaches {abbreviate(int(last.max()))}."
        )

    @property
    def unfinished(self) -> int:
        """Number of runs that have not reached their last step."""
        last: Any = self.evaluations.groupby("seed")["step"].max()
        return int((~self._complete(last)).sum())


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and bootstrap interval; nan and None for one seed.

    `seeds` is 0, and `std` nan, for a mean that was published with its interval.
    """

    mean: float
    std: float
    interval: tuple[float, float] | None
    seeds: int


def summary(values: np.ndarray | pd.Series) -> Summary | None:
    """Statistics over seeds, in the unit of the values; None for an empty input."""
    values = np.asarray(values)
    if not len(values):
        return None
    several = len(values) > 1
    std = float(values.std(ddof=1)) if several else float("nan")
    return Summary(float(values.mean()), std, bootstrap(values) if several else None, len(values))


def paired(a: pd.Series, b: pd.Series) -> Summary | None:
    """Statistics of the differences a - b over the seeds that both have; None if there is none."""
    return summary((a - b).dropna())


def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over the first axis [N], with a fixed seed."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Format settings as `name=value`."""
    return [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    ]


def abbreviate(steps: int) -> str:
    """Format a number of steps: 1000000 -> 1M, 1500 -> 1.5k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if steps >= size:
            return f"{steps / size:g}{unit}"
    return str(steps)
