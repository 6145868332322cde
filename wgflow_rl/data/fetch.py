"""Downloads that go on where they stopped, and end with a file that is whole or with none."""

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

ATTEMPTS = 5  # in a row without one byte more
PAUSE = 1.0  # seconds after the first of them, doubled after each
PATIENCE = 60  # seconds a server may stay silent
BLOCK = 1 << 20


class Refused(ConnectionError):
    """The server has no such file, or sent one that is damaged: asking again does not help."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    verify: Callable[[Path], object] = npz.verify,
    progress: bool = True,
) -> None:
    """Download a file. What has come stays in PATH.part; the next call asks for the rest of it.

    The size is compared with what the server announced, the whole with `sha256` where it is known, and the contents by
    `verify`, which raises a ValueError if they are damaged (default: every array of an npz file with its checksum). The
    file gets its name when all of them agree.

    Raises:
        ConnectionError: The message says what came and what was wanted.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch_rest(url, part, progress=progress):
                break
            error: Exception = ConnectionError("the connection was cut")
        except Refused:
            raise
        except (OSError, http.client.HTTPException) as caught:
            error = caught
        failures = 1 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            kept = (
                f" {_size(part):,} bytes are kept in {part}: call again to go on."
                if _size(part)
                else ""
            )
            raise ConnectionError(f"{url} could not be fetched ({error}).{kept}") from error
        time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        if sha256 is not None and _sha256(part) != sha256:
            raise Refused(f"what came from {url} has another SHA-256 than {sha256}; it is deleted")
        verify(part)
    except (Refused, ValueError) as error:
        part.unlink()
        raise Refused(f"{url} did not come whole ({error})") from error
    publish(part, path)


def checksums(url: str) -> dict[str, str]:
    """SHA-256 of the files of a server's folder by name, where it has a file SHA256SUMS (as sha256sum prints); or {}.

    Raises:
        ConnectionError: If the server cannot be reached.
    """
    try:
        with urllib.request.urlopen(f"{url}/SHA256SUMS", timeout=PATIENCE) as response:
            text = response.read().decode("utf-8", "replace")
    except urllib.error.URLError as error:
        if _lacking(error):
            return {}
        raise ConnectionError(f"{url} cannot be reached ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} cannot be reached ({error})") from error
    return {
        name: digest
        for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](\S+)$", text, re.MULTILINE)
    }


def _fetch_rest(url: str, part: Path, *, progress: bool) -> bool:
    """Append to `part` what it lacks. Returns whether it now has the size that the server announced."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        with error:
            if (
                error.code == 416
            ):  # there is nothing behind what we have: it is whole, or of another file
                if _total(error.headers.get("Content-Range") or "") == have:
                    return True
                part.unlink()
                return False
            if error.code < 500:
                raise Refused(f"{url}: the server answers {error.code} {error.reason}") from error
            raise
    except urllib.error.URLError as error:
        if _lacking(error):
            raise Refused(f"{url}: {error.reason}") from error
        raise
    with response:
        answer = response.headers.get("Content-Range") or ""
        if response.status == 206 and answer.startswith(f"bytes {have}-"):
            total = _total(answer)
        else:  # the whole file, whatever was asked for
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


def _lacking(error: urllib.error.URLError) -> bool:
    """Whether there is no such file, on a server or (file:///mnt/...) on a disk."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code in (403, 404, 410)
    return isinstance(error.reason, FileNotFoundError)


def _total(content_range: str) -> int | None:
    """The size of the whole file in "bytes 5-9/10" or "bytes */10"."""
    match = re.search(r"/(\d+)$", content_range)
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
