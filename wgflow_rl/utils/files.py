"""Atomic writes: under a new temporary name, flushed to the disk, then renamed.

Folders may come from other people, so no write follows a symbolic link: temporary files have random names and are
created exclusively, and files that are appended to are opened without following links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, TypeGuard

from wgflow_rl.utils.cli import UserError

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp(\.\w+)?")

_ACCESS_ERRORS = {
    # locks, rights
    *(errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.EDEADLK),
    # the device, the network
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),  # this machine
}


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Yield the path of a new, empty file that replaces `path` when the block ends without an error.

    A reader sees the old contents or the new ones. A symbolic link at `path` is replaced, not followed.

    Args:
        path: file to write.
        suffix: end of the temporary name, for writers that choose a format by it.

    Raises:
        OSError: With the name of `path` if the system gave none, as on a full disk. The old file is intact.
    """
    start = os.fsencode(path.name)[:100].decode(errors="ignore")  # names are limited in bytes
    temporary = path.with_name(f".{start}.{secrets.token_hex(8)}.tmp{suffix}")
    try:
        with naming_errors(path):
            # O_EXCL fails at anything that exists under this name, links included.
            os.close(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            )
            yield temporary
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically. Raises what `replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def publish(temporary: Path, path: Path) -> None:
    """Move a finished file to `path`: flush it to the disk, rename it, flush the folder's entry."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def open_to_append(path: Path) -> TextIO:
    """Open a text file for appending, created if missing.

    Raises:
        OSError: If `path` is a symbolic link, or exists and is not a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                error.errno, "refusing to write through a symbolic link; remove it", str(path)
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file; remove it", str(path))
    return os.fdopen(descriptor, "a", encoding="utf-8")


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError if `path` is a pipe, a device or a folder: to read it could block for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; call it where no other process writes."""
    for path in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def is_access_error(error: BaseException) -> TypeGuard[OSError]:
    """Return True if the system refused or failed to read, which says nothing about a file's contents."""
    return isinstance(error, OSError) and error.errno in _ACCESS_ERRORS


def expand_user(path: str | Path) -> Path:
    """Replace a leading ~ by the home folder.

    Raises:
        UserError: If this user has none, as in a container that runs under a bare number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} is in the home folder, but user {os.getuid()} of this machine has none. Set HOME, set WGFLOW_DATA "
            "(generated data), or give the folder as a flag."
        ) from error


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, flushing each entry to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush(path.parent)


@contextlib.contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Add the name of `path` to errors of the system that name no file: those of writes and flushes."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
