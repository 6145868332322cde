"""Resumable, verified downloads that end with a complete file or none."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from wgflow_rl.data import npz
from wgflow_rl.utils.files import publish

ATTEMPTS = 5  # consecutive failures without progress
PAUSE = 1.0  # seconds after the first failure, doubled after each further one
TIMEOUT = 60  # seconds without data from the server
BLOCK = 1 << 20


class PermanentError(ConnectionError):
    """A failure that a retry cannot fix: a missing or damaged file on the server."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    verify: Callable[[Path], object] = npz.verify,
    progress: bool = True,
) -> None:
    """Download a file. Partial data are kept in PATH.part, from which the next call resumes.

    The file is renamed to `path` once its size matches the announced one and the checks below pass.

    Args:
        url: http, https or file URL.
        path: file to create.
        sha256: expected digest; None: not checked.
        verify: called with the downloaded file; raises ValueError if it is damaged. Default:
            compare every array of an npz file with its checksum.
        progress: show a progress bar.

    Raises:
        ConnectionError: The message says what came and what was wanted.
        PermanentError: If a retry cannot help.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, part, progress=progress):
                break
            error: Exception = ConnectionError("the connection was cut")
        except PermanentError:
            raise
        except (OSError, http.client.HTTPException) as caught:
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
    try:
        if sha256 is not None and _sha256(part) != sha256:
            raise PermanentError(f"the SHA-256 of {url} is not {sha256}; the download is deleted")
        verify(part)
    except (PermanentError, ValueError) as error:
        part.unlink()
        raise PermanentError(f"{url} is damaged ({error})") from error
    publish(part, path)


def checksums(url: str) -> dict[str, str]:
    """Read SHA256SUMS of a server's folder as {file name: digest}; {} if there is none.

    Raises:
        ConnectionError: If the server cannot be reached.
    """
    try:
        with urllib.request.urlopen(f"{url}/SHA256SUMS", timeout=TIMEOUT) as response:
            text = response.read().decode("utf-8", "replace")
    except urllib.error.URLError as error:
        if _is_missing(error):
            return {}
        raise ConnectionError(f"{url} cannot be reached ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} cannot be reached ({error})") from error
    return {
        name: digest
        for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text, re.MULTILINE)
    }


def _fetch_rest(url: str, part: Path, *, progress: bool) -> bool:
    """Append the missing bytes to `part`; return True if it then has the announced size."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # range not satisfiable: `part` is complete, or of another file
                if _total(error.headers.get("Content-Range") or "") == have:
                    return True
                part.unlink()
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
        answer = response.headers.get("Content-Range") or ""
        if response.status == 206 and answer.startswith(f"bytes {have}-"):
            total = _total(answer)
        else:  # the server ignores ranges and sends the whole file
            have, total = 0, int(response.headers.get("Content-Length") or 0) or None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                disable=not progress,
            ) as bar,
        ):
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or _size(part) == total


def _is_missing(error: urllib.error.URLError) -> bool:
    """Return True if the file does not exist, on a server or (file:///mnt/...) on a disk."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code in (403, 404, 410)
    return isinstance(error.reason, FileNotFoundError)


def _total(content_range: str) -> int | None:
    """Total size in a Content-Range header, "bytes 5-9/10" or "bytes */10"."""
    match = re.search(r"/(\d+)$", content_range)
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
