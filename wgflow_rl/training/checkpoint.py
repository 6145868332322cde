"""Checkpoints as safetensors files: atomic, hashed, without pickle.

Files::

    step-000000012000.safetensors                 tensors, with all other state as JSON in the header
    rows-000000004000-000000012000.safetensors    online rows that were new at a checkpoint

Online rows of the replay are written once: a checkpoint lists the files of rows ("parts") that it
needs, by name and hash. Files are renamed into place, parts before the checkpoint that lists them,
and obsolete files are removed last, so an incomplete checkpoint is never visible. The last two
checkpoints and the best one are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from wgflow_rl.utils.files import (
    is_access_error,
    make_folder,
    remove_temporaries,
    require_regular,
    write_whole,
)

FORMAT = 3  # version of the format; increase it with every incompatible change
KEEP = 2  # last checkpoints that are kept


class Part(NamedTuple):
    """Name of a file of rows in the same folder, and the hash of its contents."""

    name: str
    sha256: str


class Checkpoint(NamedTuple):
    """Contents of a checkpoint, tensors on the CPU; `load` adds `rows`, one dictionary per part."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    sha256: str
    parts: tuple[Part, ...] = ()
    rows: tuple[dict[str, torch.Tensor], ...] = ()


class DamagedCheckpoint(ValueError):
    """A checkpoint or part that is truncated, altered, missing, or not a checkpoint."""


# ---- writing -----------------------------------------------------------------------------------------------------


def save_rows(
    folder: str | os.PathLike[str], *, first: int, last: int, tensors: Mapping[str, torch.Tensor]
) -> Part:
    """Write the rows first, ..., last - 1 to a file, to be listed by the next `save`."""
    folder = Path(folder)
    make_folder(folder)
    path = folder / f"rows-{first:012d}-{last:012d}.safetensors"
    return Part(path.name, _write(path, step=last, tensors=tensors, text="{}", parts=()))


def save(
    folder: str | os.PathLike[str],
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    parts: Sequence[Part] = (),
    best: int | None = None,
) -> Path:
    """Write the checkpoint of `step`; remove all but the last two and that of step `best`.

    The file is written under a temporary name, flushed to the disk and renamed: after a kill, a
    full disk or a power cut either the new checkpoint or the previous ones are intact. Checkpoints
    of *later* steps, left by a run that was resumed from an earlier one, are removed too, since
    `load` would select them.

    Args:
        folder: folder of the checkpoints, created if missing.
        step: step of the run.
        tensors: tensors of any shape, dtype and device; copied to the CPU, without gradients.
        state: JSON-able state; tuples become lists and keys strings, NaN and infinities are
            preserved.
        parts: results of `save_rows` for all rows that this checkpoint needs, oldest first.
        best: step of a checkpoint to keep in addition.

    Returns:
        The path of the file.

    Raises:
        TypeError: For a state that is not JSON-able.
        OSError: If the disk is full. In each case the earlier checkpoints are untouched.
    """
    text, folder = json.dumps(state), Path(folder)
    make_folder(folder)
    path = folder / f"step-{step:012d}.safetensors"
    _write(path, step=step, tensors=tensors, text=text, parts=parts)
    _remove_old(folder, step=step, best=best)
    return path


def _write(
    path: Path, *, step: int, tensors: Mapping[str, torch.Tensor], text: str, parts: Sequence[Part]
) -> str:
    """Write a file atomically and return the hash of its contents."""
    arrays, listed = _on_cpu(tensors), json.dumps(parts)
    sha256 = _digest(step, arrays, text, listed)
    meta = {
        "format": str(FORMAT),
        "step": str(step),
        "state": text,
        "parts": listed,
        "sha256": sha256,
    }
    try:
        write_whole(path, to_bytes(arrays, metadata=meta))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: {path} could not be written; the checkpoints before it are intact",
        ) from error
    return sha256


def _remove_old(folder: Path, *, step: int, best: int | None) -> None:
    found = _found(folder)
    past = [s for s in sorted(found) if s <= step]
    kept = {*past[-KEEP:], *(s for s in past if s == best)}
    for old in found.keys() - kept:
        found[old].unlink(missing_ok=True)
    # Remove parts after the checkpoints that list them. A part that no checkpoint lists was left by
    # a kill.
    needed = {part.name for s in kept for part in _listed(found[s])}
    for part in folder.glob("rows-*.safetensors"):
        if part.name not in needed:
            part.unlink(missing_ok=True)
    remove_temporaries(folder)


def _listed(path: Path) -> tuple[Part, ...]:
    """Parts listed by a checkpoint; none if it is damaged. Raises: OSError if the system refuses to read it."""
    try:
        with _open(path) as file:
            return _parts(file.metadata()["parts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if is_access_error(error):
            raise
        return ()


# ---- reading -----------------------------------------------------------------------------------------------------


def steps(folder: str | os.PathLike[str]) -> set[int]:
    """Steps with a checkpoint file, intact or not."""
    return set(_found(Path(folder)))


def load(
    folder: str | os.PathLike[str], *, step: int | None = None, rows: bool = True
) -> Checkpoint:
    """Read the newest intact checkpoint or that of `step`, with the rows of its parts if `rows`.

    The recorded SHA-256 covers step, state and every tensor's name, dtype, shape and bytes. If a
    file or one of its parts is damaged, a RuntimeWarning is issued and the previous checkpoint is
    read instead.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        DamagedCheckpoint: If none is intact.
        OSError: If the system refuses to read one.
        ValueError: If another version of this package wrote it.
    """
    found = _found(Path(folder))
    if step is not None:
        found = {s: path for s, path in found.items() if s == step}
    if not found:
        which = "step-*.safetensors" if step is None else f"step-{step:012d}.safetensors"
        raise FileNotFoundError(
            f"no checkpoint in {folder}: expected {which}. The run may have stopped before it was written; let it go "
            "on with --resume."
        )
    for at in sorted(found, reverse=True):
        try:
            return _with_rows(found[at]) if rows else read(found[at])
        except DamagedCheckpoint as error:
            if step is not None:
                raise
            warnings.warn(
                f"{error} Falling back to the checkpoint before it.", RuntimeWarning, stacklevel=2
            )
    raise DamagedCheckpoint(
        f"none of the {len(found)} checkpoints in {folder} is intact; the run must start again."
    )


def _with_rows(path: Path) -> Checkpoint:
    found = read(path)
    parts = [read(path.with_name(part.name)) for part in found.parts]
    for part, held in zip(found.parts, parts, strict=True):
        if held.sha256 != part.sha256:
            raise DamagedCheckpoint(
                f"{path.with_name(part.name)} is not the part that {path.name} lists."
            )
    return found._replace(rows=tuple(held.tensors for held in parts))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one file and check its hash.

    Raises:
        DamagedCheckpoint: If the file is not a safetensors file (such as a pickle), lacks our
            header, or does not match its hash.
        OSError: If the system refuses to read it, which says nothing about its contents.
        ValueError: If another version of this package wrote it.
    """
    try:
        with _open(path) as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        version, step = int(meta["format"]), int(meta["step"])
        text, listed, sha256 = meta["state"], meta["parts"], meta["sha256"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if is_access_error(error):
            raise
        raise DamagedCheckpoint(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error})."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {version}, this version of wgflow reads {FORMAT}; use the version that "
            "wrote it."
        )
    if sha256 != _digest(step, tensors, text, listed):
        raise DamagedCheckpoint(
            f"checkpoint {path} does not match its SHA-256: its contents have changed."
        )
    return Checkpoint(step, tensors, json.loads(text), sha256, _parts(listed))


def _open(path: str | os.PathLike[str]) -> safe_open:
    require_regular(path)
    with open(path, "rb"):  # names the reason of a failure, which safetensors does not
        return safe_open(path, framework="pt")


def _parts(listed: str) -> tuple[Part, ...]:
    return tuple(Part(*part) for part in json.loads(listed))


def _found(folder: Path) -> dict[int, Path]:
    names = {
        path: re.fullmatch(r"step-(\d+)\.safetensors", path.name)
        for path in folder.glob("step-*.safetensors")
        if path.is_file()  # to open a pipe would block
    }
    return {int(match[1]): path for path, match in names.items() if match}


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(step: int, tensors: Mapping[str, torch.Tensor], text: str, listed: str) -> str:
    # Hash the contents rather than the file: the hash fits into the file's header, and one rename
    # suffices.
    sha = hashlib.sha256(f"{FORMAT}\n{step}\n{text}\n{listed}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
