"""Readers of other packages' data, registered by `data.register`, and the default reader of npz files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgflow_rl import envs
from wgflow_rl.data import npz
from wgflow_rl.data.arrays import from_rows, split
from wgflow_rl.data.episodes import Episodes

Pair = tuple[Episodes, Episodes]  # training, validation
Read = Callable[[Path | None, str], Pair]  # (folder, env)


@dataclass(frozen=True)
class Reader:
    """A registered function with the interface of the readers in `data.SOURCES`."""

    read: Read

    def load(self, folder: Path | None, env: str, *, memory: float) -> Pair:
        """Read the data. Raises: ValueError if the function returns anything but two `Episodes`."""
        found: object = self.read(folder, env)
        match found:
            case (Episodes(), Episodes()):
                return found
        raise ValueError(
            f"the reader of {env} returned {type(found).__name__}; wanted (training, validation), two Episodes. "
            "data.split(episodes) makes them of one."
        )

    def contents(self, path: Path, env: str) -> Iterator[Episodes]:
        yield from self.load(path, env, memory=0.0)

    def download(self, env: str, folder: Path, *, mirror: str | None = None) -> Path:
        raise ValueError(
            f"env is {env!r}, whose source {envs.parse(env).source!r} has no files to download; "
            "its reader is registered by a plugin"
        )


def read_npz(folder: Path | None, env: str) -> Pair:
    """Read X.npz and X-val.npz for the environment X; without the second, a tenth is held out.

    Actions are those of the environment's own Box, scaled here to [-1, 1]. Layouts: `from_rows`.

    Raises:
        ValueError: If there is no folder, or the files are invalid.
        FileNotFoundError: If X.npz does not exist.
    """
    if folder is None:
        raise ValueError(
            f"{env} needs --data DIR, a folder with {env}.npz, or a reader of its own: data.register"
        )
    made: Any = envs.make(env)
    bounds = made.env.bounds  # of the `Adapted` in every registered environment
    made.close()

    def read(path: Path) -> Episodes:
        return from_rows(npz.read(path), env, bounds=bounds, source=str(path))

    path, held_out = folder / f"{env}.npz", folder / f"{env}-val.npz"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {path.name}, the data of {env}")
    return (read(path), read(held_out)) if held_out.exists() else split(read(path))


DEFAULT = Reader(read_npz)
