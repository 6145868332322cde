"""Checkpoints without pickles: one safetensors file a step, written whole, hashed, the last few kept.

A checkpoint is a single file, `step-000000012000.safetensors`: tensors as tensors, everything else as JSON in the
file's own header. One file means one rename, so there is no moment at which half of a checkpoint is visible.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wgflow_rl.files import publish

FORMAT = 1  # raised when a reader of the previous version would misread the file

Checkpoint = tuple[int, dict[str, torch.Tensor], dict[str, Any]]


class DamagedCheckpoint(ValueError):
    """A checkpoint file that is cut, altered, or not a checkpoint at all."""


def save(
    folder: str | os.PathLike[str],
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` whole, then drop all but the last `keep`.

    The file is written under a temporary name, flushed to the disk and renamed: whatever stops the process (a kill, a
    full disk, a power cut) leaves either the new checkpoint or the ones before it. Checkpoints of *later* steps
    belong to a future that a resumed run has left; they are dropped too, or `load` would return to it.

    Args:
        tensors: any shapes, dtypes and devices; copied to the CPU, gradients are not kept.
        state: what `json` can hold (tuples come back as lists, keys as strings); NaN and infinities survive.
    Returns: the path of the file.
    Raises: ValueError for a negative step or keep < 1, TypeError for a state that is no JSON, OSError when the disk is
        full; in each case the earlier checkpoints are untouched.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step and keep are {step} and {keep}; step must be at least 0 and keep at least 1.")
    try:
        text = json.dumps(state)
    except TypeError as error:
        raise TypeError(
            f"state cannot be written as JSON: {error}. Put arrays in tensors=, convert numpy numbers with .item()."
        ) from error
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    meta = {"format": str(FORMAT), "step": str(step), "state": text, "sha256": _digest(step, arrays, text)}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:012d}.safetensors"
    temporary = folder / f".{path.name}.tmp"
    try:
        save_file(arrays, temporary, metadata=meta)
        publish(temporary, path)
    except SafetensorError as error:  # the Rust writer wraps the system's error (usually: no space left)
        raise OSError(
            f"checkpoint {path} could not be written: {error}. The earlier ones are intact."
        ) from error
    finally:
        for left in folder.glob(".step-*.tmp"):  # ours, or of a save that was killed
            left.unlink()
    found = _found(folder)
    kept = [s for s in sorted(found) if s <= step][-keep:]
    for old in found.keys() - set(kept):
        found[old].unlink(missing_ok=True)
    return path


def load(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read the newest intact checkpoint: (step, tensors on the CPU, state).

    The recorded SHA-256 covers step, state and every tensor's name, dtype, shape and bytes. A damaged file is
    reported by a RuntimeWarning and the one before it is read instead.

    Raises: FileNotFoundError if there is no checkpoint, DamagedCheckpoint (a ValueError) if none is intact,
        ValueError if a later version of this package wrote it (that is no damage: nothing is skipped).
    """
    found = _found(Path(folder))
    if not found:
        raise FileNotFoundError(
            f"no checkpoint in {folder}: expected step-*.safetensors. The run may have stopped before its first one; "
            "start it again in a new folder."
        )
    for step in sorted(found, reverse=True):
        try:
            return read(found[step])
        except DamagedCheckpoint as error:
            warnings.warn(f"{error} Falling back to the checkpoint before it.", RuntimeWarning, stacklevel=2)
    raise DamagedCheckpoint(
        f"none of the {len(found)} checkpoints in {folder} is intact; the run must start again."
    )


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint file and check its hash: (step, tensors on the CPU, state).

    Raises: DamagedCheckpoint when the file is not a safetensors file (a pickle, for one), lacks our header, or does
        not match its hash; ValueError when a later version of this package wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        version, step, text, sha256 = int(meta["format"]), int(meta["step"]), meta["state"], meta["sha256"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DamagedCheckpoint(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error})."
        ) from error
    if version > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {version}, this version reads up to {FORMAT}; update wgflow."
        )
    if sha256 != _digest(step, tensors, text):
        raise DamagedCheckpoint(f"checkpoint {path} does not match its SHA-256: its contents have changed.")
    return step, tensors, json.loads(text)


def _found(folder: Path) -> dict[int, Path]:
    names = {
        path: re.fullmatch(r"step-(\d+)\.safetensors", path.name)
        for path in folder.glob("step-*.safetensors")
    }
    return {int(match[1]): path for path, match in names.items() if match}


def _digest(step: int, tensors: Mapping[str, torch.Tensor], text: str) -> str:
    # The contents are hashed, not the file: the hash can then live in the file's own header, and one rename is enough.
    sha = hashlib.sha256(f"{FORMAT}\n{step}\n{text}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
