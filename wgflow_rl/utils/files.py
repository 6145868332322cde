"""Files that are never seen half written: a temporary name, a flush to the disk, one rename."""

import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name: flush it to the disk, rename it over `path`, flush the folder's entry."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write a file (text as UTF-8) so that a reader sees the old contents or the new ones, never a part of either."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each with its entry flushed to the disk; harmless where it is there."""
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
