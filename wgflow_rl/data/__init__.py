"""Offline data sets as `Episodes` or `Shards`: official files, or generated data."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from wgflow_rl import envs
from wgflow_rl.data import generated, ogbench, robomimic
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.data.shards import Shards

__all__ = ["SOURCES", "Episodes", "Shards", "cache_root", "load"]

# One module per source, with the names of `envs.SOURCES`. Each provides load(folder, env, memory=),
# contents(path, env), which reads every file, and download(env, folder); nothing else depends on
# names or formats of files.
SOURCES: dict[str, ModuleType] = {"ogbench": ogbench, "robomimic": robomimic}


def cache_root() -> Path:
    """Folder of generated data: $WGFLOW_DATA, or ~/.cache/wgflow."""
    return Path(os.environ.get("WGFLOW_DATA") or "~/.cache/wgflow").expanduser()


def load(
    env: str,
    *,
    folder: str | Path | None = None,
    rows: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    memory_gb: float = 4.0,
) -> tuple[Episodes | Shards, Episodes]:
    """Load the (training, validation) data of an environment, labelled for its task.

    Args:
        env: one of `envs.names()`.
        folder: folder with the source's files, official or generated. None: generate the data into
            the cache unless they are there. With a folder, `rows`, `seed`, `workers` and `progress`
            are unused.
        rows: training transitions to generate, rounded up to whole parts. None: as many as the
            official set. A tenth as many are added for validation.
        seed: seed of the generated data, which are bit-identical for any number of workers.
        workers: worker processes of the generation; None: one per core. They do not import the
            caller's main module.
        progress: show a progress bar.
        memory_gb: memory for a folder of shards, in 10^9 bytes; shards that do not fit take turns.
            A data set in a single file is read whole.

    Raises:
        ValueError: See the source's `load`.
        FileNotFoundError: See the source's `load`.
    """
    source = SOURCES[envs.parse(env).source]
    if folder is None:
        folder = generated.generate(
            env, root=cache_root(), rows=rows, seed=seed, workers=workers, progress=progress
        )
    return source.load(Path(folder).expanduser(), env, memory=1e9 * memory_gb)
