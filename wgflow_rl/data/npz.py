"""Arrays in npz files: written whole or not at all, read without pickle, and never read wrongly in silence.

An npz file is a zip archive of npy files. numpy's own reader believes the shape in an npy header and stops where that
shape does: then nobody compares the archive's checksum. Here every array ends where its entry does.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wgflow_rl.utils.files import publish

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Damaged(ValueError):
    """A file that is cut, altered, no npz file at all, or one that holds objects."""


class Member(NamedTuple):
    """Header of one array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    crc: int  # of its bytes; compared with them whenever the array is read

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees the whole file or none; the same arrays always give the same bytes."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file, or those of them in `names`. Raises: FileNotFoundError; Damaged naming file and fault."""
    with _archive(path) as members:
        return {
            name: _array(archive, entry)
            for name, (archive, entry) in members.items()
            if names is None or name in names
        }


def headers(path: Path) -> dict[str, Member]:
    """Read the headers of a file's arrays, some kilobytes, without the arrays. Raises: as `read`."""
    with _archive(path) as members:
        return {name: _header(archive, entry) for name, (archive, entry) in members.items()}


def verify(path: Path) -> None:
    """Compare every array of a file with its checksum, in little memory. Raises: as `read`."""
    with _archive(path) as members:
        for archive, entry in members.values():
            _header(archive, entry)
            with archive.open(entry) as stream:
                while stream.read(1 << 20):
                    pass


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]]:
    """The entries of a file by the names of their arrays; whatever is wrong inside the block becomes `Damaged`."""
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = {}
                for entry in archive.infolist():
                    name = entry.filename.removesuffix(".npy")
                    if name == entry.filename or name in members:
                        raise ValueError(f"{entry.filename!r} is no array, or is there twice")
                    members[name] = (archive, entry)
                yield members
        except MemoryError:
            raise
        except Exception as error:
            # zipfile, zlib and numpy answer altered bytes with a dozen kinds of errors, NotImplementedError among them.
            raise Damaged(
                f"{path} cannot be read ({type(error).__name__}: {error}). It may be cut, or hold objects, which are "
                "never loaded. Delete it, then download or generate it again."
            ) from error


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    """Raises: ValueError if the array is made of objects, or its size is not that of the entry."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(
                f"{entry.filename} is in npy format {version}; wanted {' or '.join(map(str, _HEADERS))}"
            )
        shape, _, dtype = _HEADERS[version](stream)
        member = Member(shape, dtype, entry.CRC)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} is made of Python objects")
        if stream.tell() + member.nbytes != entry.file_size:
            raise ValueError(
                f"{entry.filename} has {entry.file_size} bytes; not those of {dtype} {shape}"
            )
    return member


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    _header(
        archive, entry
    )  # so that the array ends where its entry does, and zipfile compares the checksum
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
