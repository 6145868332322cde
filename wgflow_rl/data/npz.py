"""npz files: atomic writing, and reading without pickle that detects every damaged byte.

An npz file is a zip archive of npy files, whose checksums zipfile compares only at the end of an
entry. numpy's reader stops after the number of bytes that the npy header implies, so a damaged
header can bypass the comparison. Here the size in the header must be that of the entry, and an
entry that claims more bytes than its compressed size can hold is refused before memory is reserved.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import is_access_error, replacing, require_regular
from wgflow_rl.utils.memory import MAX_RATIO, check_memory

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Damaged(ValueError):
    """A file that is truncated, altered, not an npz file, or that contains Python objects."""


class Member(NamedTuple):
    """Header of an array: shape, dtype and recorded checksum."""

    shape: tuple[int, ...]
    dtype: np.dtype
    crc: int  # CRC-32 of the npy entry, checked whenever the array is read

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically; equal arrays give equal bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read(path: Path, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a file, or those in `names`.

    Raises:
        OSError: If the file does not exist or the system fails to read it.
        UserError: If an array exceeds the memory of the machine.
        Damaged: The message names file and fault.
    """
    with _archive(path) as members:
        return {
            name: _array(archive, entry)
            for name, (archive, entry) in members.items()
            if names is None or name in names
        }


def headers(path: Path) -> dict[str, Member]:
    """Read the headers of all arrays, some kilobytes, without their contents."""
    with _archive(path) as members:
        return {name: _header(archive, entry) for name, (archive, entry) in members.items()}


def verify(path: Path) -> None:
    """Compare every array of a file with its checksum, in constant memory."""
    with _archive(path) as members:
        for archive, entry in members.values():
            _header(archive, entry)
            with archive.open(entry) as stream:
                while stream.read(1 << 20):
                    pass


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]]:
    """Open a file as {array name: (archive, entry)}; errors inside the block become `Damaged`."""
    require_regular(path)
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = {}
                for entry in archive.infolist():
                    name = entry.filename.removesuffix(".npy")
                    if name == entry.filename or name in members:
                        raise ValueError(f"{entry.filename!r} is not an array, or occurs twice")
                    members[name] = (archive, entry)
                stored = sum(entry.compress_size for entry in archive.infolist())
                if stored > (size := path.stat().st_size):
                    raise ValueError(f"its entries claim {stored:,} bytes of a file of {size:,}")
                yield members
        except (MemoryError, UserError):
            raise
        except Exception as error:
            if is_access_error(error):
                raise OSError(error.errno, error.strerror, str(path)) from error
            # zipfile, zlib and numpy raise a dozen types of errors on altered bytes,
            # NotImplementedError among them.
            raise Damaged(
                f"{path} cannot be read ({type(error).__name__}: {error}). It may be truncated, or contain "
                "Python objects, which are never loaded. Delete it, then download or generate it again."
            ) from error


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    """Read an array's header. Raises: ValueError for objects, or if its size is not that of the entry."""
    if entry.file_size > MAX_RATIO * entry.compress_size:
        raise ValueError(
            f"{entry.filename} claims {entry.file_size:,} bytes in {entry.compress_size:,} compressed ones"
        )
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(
                f"{entry.filename} is in npy format {version}; wanted {' or '.join(map(str, _HEADERS))}"
            )
        shape, _, dtype = _HEADERS[version](stream)
        member = Member(shape, dtype, entry.CRC)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} contains Python objects")
        if stream.tell() + member.nbytes != entry.file_size:
            raise ValueError(
                f"{entry.filename} has {entry.file_size} bytes, which is not the size of {dtype} {shape}"
            )
    return member


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    # Sizes agree: reading the array reaches the end, where the checksum is compared.
    check_memory(_header(archive, entry).nbytes, f"{archive.filename}: {entry.filename}")
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
