"""HDF5 files of unknown origin: reading that stays inside the file and within memory.

HDF5 can present other files of the machine as its own contents (external links, external storage, virtual data sets),
and a few bytes can promise an array of any size. All of these are refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import is_access_error, require_regular
from wgflow_rl.utils.memory import MAX_RATIO, check_memory


class Contents:
    """The groups and arrays of an open h5py.File, by path."""

    def __init__(self, file: Any, path: Path):
        self.path, self._file = path, file
        self._size, self._read = path.stat().st_size, 0  # bytes of the file, and of it read so far

    def get(self, name: str) -> Any:
        """Return a group or array without reading it, or None if there is none.

        Raises:
            ValueError: If a link on the way is not a hard link, so that it may leave the file.
        """
        import h5py

        found: Any = self._file
        for part in filter(None, name.split("/")):
            link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise ValueError(
                    f"{self.path}: {name} is behind a symbolic or external link, which is not followed; copy the file "
                    "with its links resolved"
                )
            found = found[part]
        return found

    def array(self, name: str) -> Any:
        """Return an array without reading it, or None if there is none. Raises: ValueError as `get` and `read`."""
        import h5py

        found = self.get(name)
        if found is not None and not isinstance(found, h5py.Dataset):
            raise ValueError(f"{self.path}: {name} is a group; wanted an array")
        if found is not None and (found.is_virtual or found.external):
            raise ValueError(f"{self.path}: {name} is stored in other files, which are not read")
        return found

    def read(self, name: str) -> np.ndarray:
        """Read an array.

        Raises:
            LookupError: If there is none.
            ValueError: If it is stored in other files, holds objects, or is larger than its bytes in the file allow.
            UserError: If it exceeds the memory of the machine.
        """
        array = self.array(name)
        if array is None:
            raise LookupError(f"no {name}")
        stored = array.id.get_storage_size()
        self._read += stored
        if array.dtype.hasobject or array.nbytes > MAX_RATIO * stored or self._read > self._size:
            raise ValueError(
                f"{self.path}: {name} is {array.dtype} {array.shape}, {array.nbytes:,} bytes, of which the file stores "
                f"{stored:,}; the file looks truncated or made up"
            )
        check_memory(array.nbytes, f"{self.path}: {name}")
        return array[()]


@contextlib.contextmanager
def opened(path: Path, *, kind: str, install: str) -> Iterator[Contents]:
    """Open a file for reading.

    Args:
        path: HDF5 file.
        kind: what the file should be, for messages.
        install: command that installs h5py.

    Raises:
        OSError: If the file does not exist, or is locked or unreadable.
        UserError: If h5py is not installed.
        ValueError: If it is damaged, or the block finds unexpected contents.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    require_regular(path)
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} needs h5py: {install}") from error
    try:
        # A file that is being downloaded is locked by the download that checks it here.
        locking = False if path.suffix == ".part" else None
        with h5py.File(path, "r", locking=locking) as file:
            yield Contents(file, path)
    except (
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        json.JSONDecodeError,
    ) as error:
        if isinstance(error, UserError):
            raise
        if is_access_error(error):
            locked = error.errno in (errno.EAGAIN, errno.ENOLCK)
            raise OSError(
                error.errno,
                "the file is locked: another program writes it, or its file system has no locks (then set "
                "HDF5_USE_FILE_LOCKING=FALSE)"
                if locked
                else "the file cannot be read",
                str(path),
            ) from error
        # Raised by h5py for truncated or altered bytes, and by the block for unexpected contents.
        raise ValueError(
            f"{path} is not {kind}, or is damaged ({type(error).__name__}: {error}). Delete it, then download or "
            "generate it again."
        ) from error
