"""Run folders: settings, metrics as CSV and TensorBoard events, and a lock against a second writer.

Files::

    config.json   settings, versions, commit, command line         train.csv   one row per log interval
    tensorboard/  the same rows as scalars                         eval.csv    one row per evaluation
    curve.png     success and episode length against steps        .lock       held while a process writes here

A killed and resumed run has the CSV rows of an uninterrupted one, except for the clock column, if
the rows of a step are written before its checkpoint.
"""

import contextlib
import fcntl
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from wgflow_rl.training.csv_table import Table
from wgflow_rl.training.curve import draw_curve
from wgflow_rl.training.events import Events, quiet_threads
from wgflow_rl.training.provenance import provenance
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import (
    make_folder,
    open_to_append,
    remove_temporaries,
    require_regular,
    write_whole,
)

EVAL_COLUMNS = (
    "step",
    "phase",
    "success",
    "success_low",
    "success_high",
    "return",
    "length",
    "wall_s",
)
TRAIN_COLUMNS = ("step", "phase", "wall_s")  # first columns, followed by those of the first row
RowCallback = Callable[[Path, str, Mapping[str, Any]], object]
_row_callbacks: list[RowCallback] = []
Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal distribution


def wilson(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, 95 % by default (E. B. Wilson, 1927, JASA 22).

    Unlike k/n ± z sigma it stays in [0, 1] and has a positive width for 0 and n successes of n.

    Raises:
        ValueError: Unless 0 <= successes <= episodes and episodes > 0.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"got {successes} successes of {episodes} episodes; wanted 0 <= successes <= episodes > 0."
        )
    centre = (successes + z * z / 2) / (episodes + z * z)
    half = (
        z
        / (episodes + z * z)
        * math.sqrt(successes * (episodes - successes) / episodes + z * z / 4)
    )
    # Exact at the ends, where centre and half differ by rounding alone.
    return (
        max(0.0, centre - half) if successes else 0.0,
        min(1.0, centre + half) if successes < episodes else 1.0,
    )


def on_row(callback: RowCallback) -> RowCallback:
    """Call a function after every row of train.csv and eval.csv; usable as a decorator.

    A resumed run repeats the rows after its checkpoint. A callback that raises is reported once
    (RuntimeWarning) and not called again in this process.

    Args:
        callback: function of (folder of the run, "train" or "eval", row); a row maps columns to
            values, among them step and phase.
    """
    _row_callbacks.append(callback)
    return callback


def check_folder(folder: str | os.PathLike[str], *, resume: bool) -> None:
    """Check that a run can be started or resumed in a folder.

    `RunLog` checks this too; a check before data are generated reports errors without that wait.

    Raises:
        FileExistsError: If a new run would overwrite another.
        FileNotFoundError: If there is no run to resume.
        PermissionError: If the folder is not writable.
        NotADirectoryError: If the path is not a folder.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(
            f"{nearest} is no folder, so no run can be written to {folder}; choose another --run-dir."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"nothing can be written to {nearest}; choose another folder with --run-dir."
        )
    found = [
        p
        for name in ("config.json", "train.csv", "eval.csv")
        if (p := Path(folder) / name).exists()
    ]
    for place in found:
        require_regular(place)
    # Headers alone, left by a run that was killed before its first row, may be overwritten.
    holds_run = any(
        path.name == "config.json" or path.read_bytes().count(b"\n") > 1 for path in found
    )
    if holds_run and not resume:
        raise FileExistsError(
            f"{folder} already holds a run. Continue it with --resume {folder}, "
            "or choose another folder with --run-dir."
        )
    if resume and not found:
        raise FileNotFoundError(
            f"no run to resume in {folder}: config.json, train.csv, eval.csv are missing."
        )


class RunLog:
    """Writer of a run folder, at most one at a time.

    Args:
        folder: folder of the run, created if missing.
        resume_step: None starts a new run. A step continues an existing run: rows of later steps
            are dropped (-1 drops all rows), and the clock continues from the last remaining row.
        evaluate_again: also drop the evaluation of `resume_step`.
        tensorboard: write the rows as TensorBoard events too (imported only then).

    Raises:
        FileExistsError: If a new run would write into the folder of another.
        FileNotFoundError: If there is no run to resume.
        RuntimeError: If another process is writing there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume_step: int | None = None,
        evaluate_again: bool = False,
        tensorboard: bool = True,
    ):
        self.folder = Path(folder)
        check_folder(self.folder, resume=resume_step is not None)
        make_folder(self.folder)
        self.resume_step = resume_step
        with contextlib.ExitStack() as opened:  # closes everything if a step below fails
            opened.enter_context(_lock(self.folder / ".lock"))
            # another run may have ended before the lock
            check_folder(self.folder, resume=resume_step is not None)
            remove_temporaries(self.folder)
            self._train = Table(self.folder / "train.csv", TRAIN_COLUMNS, resume_step)
            opened.callback(self._train.close)
            evaluated = resume_step if resume_step is None else resume_step - evaluate_again
            self._eval = Table(self.folder / "eval.csv", EVAL_COLUMNS, evaluated)
            opened.callback(self._eval.close)
            self._events: Events | None = None
            if tensorboard:
                opened.enter_context(quiet_threads())
                # A repeated evaluation gives equal numbers, so its events need not be purged.
                self._events = Events(self.folder / "tensorboard", resume_step)
                opened.callback(self._events.close)
            self._opened = opened.pop_all()
        self._start = time.monotonic() - max(self._train.last("wall_s"), self._eval.last("wall_s"))

    @property
    def wall_s(self) -> float:
        """Seconds since the start of the run, including time before a resume."""
        return time.monotonic() - self._start

    def config(self, settings: Mapping[str, Any]) -> None:
        """Write config.json: settings (JSON-able), versions, commit and command line.

        A resumed run keeps its original settings, except for the folder of its data, and adds an entry to "resumed".

        Raises:
            TypeError: For settings that are not JSON-able.
        """
        path = self.folder / "config.json"
        here = provenance()
        if self.resume_step is None or not path.exists():
            contents = {"settings": dict(settings), **here, "resumed": []}
        else:
            contents = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(contents.get("resumed"), list):
                raise ValueError(
                    f"{path} is damaged: it has no list of resumes. Give it an empty one: resumed, []."
                )
            contents["resumed"].append({"step": self.resume_step, **here})
            if isinstance(contents.get("settings"), dict) and "data" in settings:
                contents["settings"]["data"] = settings["data"]  # the files may have moved
        write_whole(path, json.dumps(contents, indent=2) + "\n")

    def train(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        """Add a row to train.csv.

        Values are numbers or one-element tensors; NaN is written as nan.

        A new key becomes a new last column, empty in earlier rows; the cell of a missing key is
        empty.
        """
        numbers = {name: float(value) for name, value in values.items()}
        row = {"step": step, "phase": phase, "wall_s": round(self.wall_s, 1), **numbers}
        self._train.add(row)
        if self._events is not None:
            self._events.add("train", numbers, step)
        self._call_back("train", row)

    def evaluation(
        self,
        step: int,
        phase: str,
        *,
        successes: int,
        episodes: int,
        episode_return: float,
        length: float,
        scores: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Add a row to eval.csv: success with Wilson 95 % interval, mean return, mean steps.

        Of an environment with scores also their mean and its normal 95 % interval.

        Returns:
            The row.

        Raises:
            ValueError: See `wilson`.
        """
        low, high = wilson(successes, episodes)
        row: dict[str, Any] = {
            "step": step,
            "phase": phase,
            "success": successes / episodes,
            "success_low": low,
            "success_high": high,
            "return": float(episode_return),
            "length": float(length),
            "wall_s": round(self.wall_s, 1),
        }
        if scores is not None:
            std = scores.std(ddof=1) if len(scores) > 1 else math.nan
            mean, half = scores.mean(), Z95 * std / math.sqrt(len(scores))
            row |= {
                "score": float(mean),
                "score_low": float(mean - half),
                "score_high": float(mean + half),
            }
        self._record_evaluation(row)
        return row

    def begin_with(self, evaluations: Sequence[Mapping[str, Any]], *, seconds: float) -> None:
        """Begin eval.csv with the rows of another run, and the clock at `seconds`."""
        self._start -= seconds
        for row in evaluations:
            self._record_evaluation(row)

    def _record_evaluation(self, row: Mapping[str, Any]) -> None:
        self._eval.add(row)
        if self._events is not None:
            numbers = {name: row[name] for name in row if name not in ("step", "phase")}
            self._events.add("eval", numbers, row["step"])
            self._events.flush()
        self._call_back("eval", row)

    def _call_back(self, table: str, row: Mapping[str, Any]) -> None:
        for callback in tuple(_row_callbacks):
            try:
                callback(self.folder, table, dict(row))
            except Exception as error:  # a monitoring service that fails must not end a training
                _row_callbacks.remove(callback)
                warnings.warn(
                    f"the row callback {callback!r} failed and is not called again: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )

    def curve(self, title: str = "") -> Path:
        """Draw curve.png from the rows of eval.csv; return its path."""
        return draw_curve(self._eval.rows, path=self.folder / "curve.png", title=title)

    def sync(self) -> None:
        """Flush the rows to the disk, before a checkpoint that follows them."""
        self._train.sync()
        self._eval.sync()

    def close(self) -> None:
        """Close all files and release the folder, even on a full disk; may be called twice."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(path: Path) -> TextIO:
    # flock rather than a file with a process id: the kernel releases it when the process ends.
    file = open_to_append(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"another process is writing to {path.parent}; wait for it, or use --run-dir."
        ) from error
    return file
