"""Rows of a run as TensorBoard events."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from wgflow_rl.utils.files import naming_errors

LAYOUT = {  # of TensorBoard's tab "custom scalars"
    "success": {
        "success, 95 % interval": [
            "Margin",
            ["eval/success", "eval/success_low", "eval/success_high"],
        ]
    },
    "values": {
        "Q of chunks": [
            "Multiline",
            [f"train/q_{of}$" for of in ("candidates", "positives", "proposed", "executed")],
        ]
    },
    "policy": {"diversity, clipped": ["Multiline", ["train/spread_ratio", "train/clipped"]]},
}


class Events:
    """Writer of scalars. A full disk is an OSError that names `folder`.

    Args:
        folder: folder of the event files.
        resume_step: scalars of later steps, written before a kill, are purged; None: a new run.
    """

    def __init__(self, folder: Path, resume_step: int | None):
        self.folder = folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside tensorboard
            from torch.utils.tensorboard import SummaryWriter

            purged = None if resume_step is None else resume_step + 1
            self._writer = SummaryWriter(str(folder), purge_step=purged)
        self._writer.add_custom_scalars(LAYOUT)

    def add(self, table: str, numbers: Mapping[str, float], step: int) -> None:
        """Write the numbers of a row, named TABLE/COLUMN."""
        with naming_errors(self.folder):
            for name, number in numbers.items():
                self._writer.add_scalar(f"{table}/{name}", number, step)

    def flush(self) -> None:
        with naming_errors(self.folder):
            self._writer.flush()

    def close(self) -> None:
        with naming_errors(self.folder):
            self._writer.close()


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Print no traceback of TensorBoard's threads: what they raise is raised again by the next write."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__module__.partition(".")[0] != "tensorboard":
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
