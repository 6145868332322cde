"""Atomic writes: under a temporary name, flushed to the disk, then renamed."""

import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Move a finished file to `path`: flush it to the disk, rename it, flush the folder's entry."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically: a reader sees the old contents or the new ones."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, flushing each entry to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
