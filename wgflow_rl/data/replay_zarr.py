"""Diffusion Policy's replay buffers, zarr format 2: reading and validation.

A store has arrays data/KEY of T rows each and meta/episode_ends [E]: episode i is the rows
ends[i - 1] to ends[i] - 1, and ends[E - 1] = T (Chi et al., "Diffusion Policy", 2023). It is a
folder X.zarr, or a zip archive that holds one store, at its top (X.zarr.zip) or in a subfolder.

zarr reads a missing chunk as the array's fill value, without an error. Here it is an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import require_regular
from wgflow_rl.utils.memory import MAX_RATIO, check_memory

ENDS = "meta/episode_ends"
HARMLESS = 1 << 30  # bytes of an array that are read however well they are compressed
INSTALL = 'pip install -e ".[rl]" -c constraints.txt'
# Codecs of numcodecs that map bytes to bytes or numbers to numbers. Others may load pickles.
CODECS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"} | {
    "adler32",
    "bitround",
    "crc32",
    "crc32c",
    "delta",
    "fixedscaleoffset",
    "fletcher32",
    "quantize",
    "shuffle",
}


class Damaged(ValueError):
    """A store that is truncated, altered, incomplete, or no replay buffer in zarr format 2."""


class ReplayBuffer(NamedTuple):
    """Arrays of T rows by key, and the end of each episode."""

    arrays: dict[str, np.ndarray]  # [T, ...] each
    episode_ends: np.ndarray  # [E] int64, exclusive; the last is T


def read(path: Path, keys: Mapping[str, tuple[int, ...] | None]) -> ReplayBuffer:
    """Read and validate some arrays of a store; others, such as images, are not touched.

    Args:
        path: folder or zip archive.
        keys: the arrays to read, with the shape wanted of a row; None: any shape.

    Raises:
        FileNotFoundError: If there is no `path`.
        Damaged: The message names store, array and, where possible, the row: an array is missing,
            lacks a chunk, is truncated, is not numeric, has another shape or a number that is not
            finite; or the ends are not increasing, or do not match the arrays.
        UserError: If zarr is not installed, or an array exceeds the memory of the machine.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with _open(path) as read_array:
        ends = read_array(ENDS)
        arrays = {key: read_array(f"data/{key}") for key in keys}
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) == 0:
        raise Damaged(
            f"{path}: {ENDS} is {ends.dtype} {ends.shape}; wanted integers, one per episode"
        )
    ends = ends.astype(np.int64)
    if not (np.diff(ends, prepend=0) > 0).all():
        first = int(np.argmax(np.diff(ends, prepend=0) <= 0))
        raise Damaged(
            f"{path}: {ENDS} does not increase: {ends[first]} of episode {first} after "
            f"{ends[first - 1] if first else 0}"
        )
    for key, array in arrays.items():
        shape = keys[key]
        if array.dtype.kind not in "biuf" or array.shape != (ends[-1], *(shape or array.shape[1:])):
            wanted = f"numbers in {ends[-1]} rows, the end of the last episode"
            raise Damaged(
                f"{path}: data/{key} is {array.dtype} {array.shape}; wanted {wanted}"
                + ("" if shape is None else f", each of shape {shape}")
            )
        finite = np.isfinite(array.reshape(len(array), -1)).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            episode = int(np.searchsorted(ends, row, side="right"))
            raise Damaged(
                f"{path}: data/{key} is not finite in row {row}, in episode {episode}; remove that episode"
            )
    return ReplayBuffer(arrays, ends)


def _array(where: Path | zipfile.Path, group: Any, name: str) -> np.ndarray:
    """Read an array whole.

    Raises:
        Damaged: If it is missing, lacks a chunk, lies in part outside the store, may contain Python
            objects, or is larger than its bytes in the store allow.
        UserError: If it exceeds the memory of the machine.
    """
    _check_inside(where, *_metadata(where / name))
    if not (where / name / ".zarray").is_file():
        held = [
            f"{part.name}/{array.name}"
            for part in (where / "data", where / "meta")
            if part.is_dir()
            for array in part.iterdir()
            if (array / ".zarray").is_file()
        ]
        raise Damaged(f"{where} has no {name}; it has {', '.join(sorted(held)) or 'no array'}")
    header = json.loads((where / name / ".zarray").read_bytes())
    codecs = [codec["id"] for codec in (header["compressor"], *(header["filters"] or ())) if codec]
    # As a filter, blosc would get a buffer whose size is not checked below.
    if set(codecs) - CODECS or "blosc" in codecs[1:] or "O" in str(header["dtype"]):
        raise Damaged(
            f"{where}: {name} is {header['dtype']}, coded with {', '.join(codecs) or 'nothing'}; wanted numbers, coded "
            f"with {', '.join(sorted(CODECS))} (Python objects are never loaded)"
        )
    array, stored = group[name], 0
    check_memory(array.nbytes, f"{where}: {name}")
    for index in np.ndindex(array.cdata_shape):
        chunk = where / name / array.metadata.encode_chunk_key(index)
        if not chunk.is_file():
            raise Damaged(
                f"{chunk} is missing, with rows of {name} from {index[0] * array.chunks[0]} on; zarr would read "
                f"{array.fill_value}. The copy is incomplete: copy it again. (A writer that leaves out chunks of the "
                "fill value has an option against it, write_empty_chunks=True.)"
            )
        _check_inside(where, chunk)
        size = _size(chunk)
        if size > 2 * math.prod(array.chunks) * array.dtype.itemsize + 4096:
            raise Damaged(f"{chunk} has {size:,} bytes, more than its numbers; it looks made up")
        stored += size
        if codecs[:1] == ["blosc"]:  # which reads beyond the end of some truncated buffers
            contents = chunk.read_bytes()
            size = int.from_bytes(contents[12:16], "little")
            if len(contents) != size:
                raise Damaged(
                    f"{chunk} has {len(contents)} bytes, but {size} by its header; it looks truncated. Copy it again."
                )
    if array.nbytes > max(HARMLESS, MAX_RATIO * stored):
        raise Damaged(
            f"{where}: {name} is {array.dtype} {array.shape}, {array.nbytes:,} bytes, of which the store has "
            f"{stored:,}; it looks truncated or made up"
        )
    return array[:]


def _metadata(node: Path | zipfile.Path) -> list[Path | zipfile.Path]:
    """Files that zarr opens, where they exist, to find out what a node is."""
    return [node / name for name in (".zarray", ".zgroup", ".zattrs")]


def _check_inside(where: Path | zipfile.Path, *files: Path | zipfile.Path) -> None:
    """Refuse files of a folder that are links to its outside, or pipes, which could block for ever.

    Raises:
        Damaged: The message names the file.
        OSError: For pipes and devices.
    """
    for file in files:
        if isinstance(file, Path) and isinstance(where, Path) and file.exists():
            if not file.resolve().is_relative_to(where.resolve()):
                raise Damaged(f"{file} is a link to a file outside the store, which is not read")
            require_regular(file)


def _size(file: Path | zipfile.Path) -> int:
    """Bytes of a file, read from a folder or an archive."""
    if isinstance(file, Path):
        return file.stat().st_size
    return file.root.getinfo(file.at).file_size


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Callable[[str], np.ndarray]]:
    """Open a store as a function that reads an array; errors in the block become `Damaged`."""
    try:
        import zarr
        from zarr.storage import LocalStore, ZipStore
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} needs zarr 3 ({error}): {INSTALL}") from error
    options: Any = {"mode": "r", "zarr_format": 2, "use_consolidated": False}
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                where: Path | zipfile.Path = path
                _check_inside(path, *_metadata(path))
                group = zarr.open_group(LocalStore(path, read_only=True), **options)
            else:
                archive = stack.enter_context(zipfile.ZipFile(path))
                root = _root(path, archive)
                where = zipfile.Path(archive, root)
                store = ZipStore(path, mode="r")
                group = zarr.open_group(store, path=root.rstrip("/"), **options)
                stack.callback(store.close)
            yield functools.partial(_array, where, group)
        except (Damaged, MemoryError, UserError):
            raise
        except Exception as error:
            # zarr, numcodecs, json and zipfile raise a dozen types of errors on altered bytes.
            raise Damaged(
                f"{path} cannot be read as a replay buffer in zarr format 2 ({type(error).__name__}: {error}). It may "
                "be truncated. Delete it, then download or copy it again."
            ) from error


def _root(path: Path, archive: zipfile.ZipFile) -> str:
    """Prefix of the one store in an archive: "" or "FOLDER/"."""
    end = f"{ENDS}/.zarray"
    roots = [
        name.removesuffix(end)
        for name in archive.namelist()
        if name == end or name.endswith(f"/{end}")
    ]
    if len(roots) != 1:
        raise Damaged(
            f"{path} has {len(roots)} replay buffers in zarr format 2 ({', '.join(roots) or f'no {end}'}); wanted one. "
            "Unpack it and name the folder."
        )
    return roots[0]
