"""Arrays in npz files: written whole or not at all, read without pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wgflow_rl.files import publish


class Damaged(ValueError):
    """A file that is cut, altered, no npz file at all, or one that holds objects."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees the whole file or none; the same arrays always give the same bytes."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file. Raises: FileNotFoundError; Damaged naming the file and what is wrong with it."""
    with path.open("rb") as stream:  # numpy leaves a file open that it cannot read
        try:
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise Damaged(
                f"{path} cannot be read ({type(error).__name__}: {error}). It may be cut, or hold objects, which are "
                "never loaded. Delete it, then download or generate it again."
            ) from error
