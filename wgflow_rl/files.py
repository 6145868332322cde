"""Files that are never seen half written: a temporary name, a flush to the disk, one rename."""

import os
from pathlib import Path


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name: flush it to the disk, rename it over `path`, flush the folder's entry."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old contents or the new ones, never a part of either."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
