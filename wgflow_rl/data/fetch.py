"""Resumable, verified downloads that end with a complete file or none.

A partial download X.part is continued only if the server confirms by its ETag or date of change, kept in
X.part.version, that the file is still the same. A lock on X.part makes a second download of the file wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from wgflow_rl.data import npz
from wgflow_rl.utils.files import naming_errors, open_to_append, publish, write_whole

ATTEMPTS = 5  # consecutive failures without progress
PAUSE = 1.0  # seconds after the first failure, doubled after each further one
TIMEOUT = 60  # seconds without data from the server
BLOCK = 1 << 20
# bytes of a file; the largest published one, a shard of 1M transitions, has below 1 GB
LARGEST = 50 * 10**9
LARGEST_TEXT = 1 << 20  # bytes of SHA256SUMS
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # errors of this machine: no retry
LOCAL = ("localhost", "127.0.0.1", "::1")


class PermanentError(ConnectionError):
    """A failure that a retry cannot fix: a missing, damaged or oversized file on the server."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    verify: Callable[[Path], object] = npz.verify,
) -> None:
    """Download a file unless `path` exists. Partial data are kept in PATH.part, from which the next call resumes.

    The file is renamed to `path` once its size matches the announced one and the checks below pass. If another
    process downloads the same file, this waits for it.

    Args:
        url: https or file URL; http with `sha256`, or from this machine.
        path: file to create, with missing folders.
        sha256: expected digest; None: not checked.
        verify: called with the downloaded file; raises ValueError if it is damaged. Default:
            compare every array of an npz file with its checksum.

    Raises:
        ValueError: For a URL whose contents could be altered on the way.
        ConnectionError: The message says what came and what was wanted.
        PermanentError: If a retry cannot help.
        OSError: If the disk is full or cannot be written.
    """
    if sha256 is None and not _is_secure(url):
        raise ValueError(
            f"{url} is not https, and no SHA-256 of the file is known, so its contents could be altered on the way. "
            "Give an https URL, or download the file by hand and compare its checksum."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _locked(part, path) as file:
        if file is None:  # another process has finished it
            return
        _fetch_whole(url, file, part)
        try:
            if sha256 is not None and _sha256(part) != sha256:
                raise ValueError(f"its SHA-256 is not {sha256}; the download is deleted")
            verify(part)
        except ValueError as error:
            _discard(part)
            raise PermanentError(f"{url} is damaged ({error})") from error
        publish(part, path)
        _version_file(part).unlink(missing_ok=True)


def _is_secure(url: str) -> bool:
    """Return True if nobody on the way could alter the contents."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("https", "file") or parts.hostname in LOCAL


def checksums(url: str) -> dict[str, str]:
    """Read SHA256SUMS of a server's folder as {file name: digest}; {} if there is none.

    Over plain http the digests could be altered with the files, so {} is returned there too.

    Raises:
        ConnectionError: If the server cannot be reached.
    """
    if not _is_secure(url):
        return {}
    try:
        with _open(f"{url}/SHA256SUMS") as response:
            text = response.read(LARGEST_TEXT).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        if _is_missing(error):
            return {}
        raise ConnectionError(f"{url} cannot be reached ({error})") from error
    return {
        name: digest
        for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text, re.MULTILINE)
    }


@contextlib.contextmanager
def _locked(part: Path, path: Path) -> Iterator[BinaryIO | None]:
    """Open and lock `part`; None if `path` exists, perhaps since another process that held the lock made it."""
    while True:
        if path.exists():
            yield None
            return
        with open_to_append(part) as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another download of {path}", file=sys.stderr)
                fcntl.flock(held, fcntl.LOCK_EX)
            # Whoever held the lock may have renamed or deleted the file that is open here.
            if part.exists() and os.path.samestat(os.fstat(held.fileno()), part.stat()):
                try:
                    yield held.buffer
                finally:
                    if part.exists() and not _size(part):
                        _discard(part)
                return


def _fetch_whole(url: str, file: BinaryIO, part: Path) -> None:
    """Fetch until `part` is complete, or too often without progress."""
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, file, part):
                return
            error: Exception = ConnectionError("the connection was cut")
        except PermanentError:
            raise
        except (OSError, http.client.HTTPException) as caught:
            if isinstance(caught, OSError) and caught.errno in DISK:
                raise
            error = caught
        failures = 1 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            kept = (
                f" {_size(part):,} bytes are kept in {part}: repeat the command to resume."
                if _size(part)
                else ""
            )
            raise ConnectionError(f"{url} could not be fetched ({error}).{kept}") from error
        time.sleep(PAUSE * 2 ** (failures - 1))


def _fetch_rest(url: str, file: BinaryIO, part: Path) -> bool:
    """Append the missing bytes to `part`; return True if it then has the announced size."""
    have, version = _size(part), _read_version(part)
    # Without a version the server cannot say whether its file is still the one `part` began with.
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # range not satisfiable: `part` is complete, or of another file
                if _total(error.headers.get("Content-Range") or "") == have:
                    return True
                file.truncate(0)
                return False
            if error.code < 500:
                raise PermanentError(
                    f"{url}: the server answers {error.code} {error.reason}"
                ) from error
            raise
    except urllib.error.URLError as error:
        if _is_missing(error):
            raise PermanentError(f"{url}: {error.reason}") from error
        raise
    with response:
        answer, now = response.headers.get("Content-Range") or "", _version(response.headers)
        if response.status == 206 and answer.startswith(f"bytes {have}-") and now == version:
            total = _total(answer)
        elif response.status == 206:  # a part of something else
            file.truncate(0)
            return False
        else:  # the file has changed, or the server ignores ranges: it sends the whole file
            file.truncate(0)
            have, total = 0, int(response.headers.get("Content-Length") or 0) or None
            write_whole(_version_file(part), now)
        _check_room(url, total or 0, have, part)
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar:
            while block := response.read(BLOCK):
                with naming_errors(part):
                    file.write(block)
                    file.flush()
                bar.update(len(block))
                if _size(part) > LARGEST:
                    raise PermanentError(f"{url} has more than {LARGEST:,} bytes")
    return total is None or _size(part) == total


def _open(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Request a URL, of this machine without a proxy; a redirect from https to http is refused."""
    request = urllib.request.Request(url, headers=headers or {})
    opener = urllib.request.urlopen
    if urllib.parse.urlsplit(url).hostname in LOCAL:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    response = opener(request, timeout=TIMEOUT)
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise PermanentError(f"{url} redirects to {response.url}, which is not https")
    return response


def _check_room(url: str, total: int, have: int, part: Path) -> None:
    """Raise PermanentError if a file is larger than any data set, or than the room on the disk."""
    if total > LARGEST:
        raise PermanentError(f"{url} has {total:,} bytes; wanted at most {LARGEST:,}")
    if total - have > (room := shutil.disk_usage(part.parent).free):
        raise PermanentError(
            f"{url} needs {total - have:,} more bytes, but {part.parent} has room for {room:,}"
        )


def _version(headers: http.client.HTTPMessage) -> str:
    """A validator for If-Range: a strong ETag, or else the date of change; empty if the server sends neither."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified") or ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _read_version(part: Path) -> str:
    with contextlib.suppress(OSError):
        text = _version_file(part).read_text(encoding="latin-1")
        if text.isprintable():  # it becomes a header
            return text
    return ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _is_missing(error: Exception) -> bool:
    """Return True if the file does not exist, on a server or (file:///mnt/...) on a disk."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code in (403, 404, 410)
    return isinstance(getattr(error, "reason", None), FileNotFoundError)


def _total(content_range: str) -> int | None:
    """Total size in a Content-Range header, "bytes 5-9/10" or "bytes */10"."""
    match = re.search(r"/(\d+)$", content_range)
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
