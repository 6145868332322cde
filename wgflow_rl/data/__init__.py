"""Sources of offline data, all ending in `Episodes`: official files, whole or in shards, or data generated here."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from wgflow_rl import envs
from wgflow_rl.data import generated, ogbench, robomimic
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.data.shards import Shards

__all__ = ["SOURCES", "Episodes", "Shards", "cache_root", "load"]

# As `envs.SOURCES`: each file alone knows how the files in a folder are named and read. It has load(folder, env,
# memory=), contents(path, env), which reads every file that is there, and download(env, folder).
SOURCES: dict[str, ModuleType] = {"ogbench": ogbench, "robomimic": robomimic}


def cache_root() -> Path:
    """Where generated data is kept: $WGFLOW_DATA, or ~/.cache/wgflow."""
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
    """(training, validation) data of an environment, labelled for its task.

    Args:
        env: a name of `envs.names()`.
        folder: holds the source's files (official or generated): the next three arguments are then not used. None:
            generate once into the cache, then read it.
        rows: transitions to generate (rounded up to whole trajectories); None: as many as the official set. A tenth as
            many are added for validation.
        seed: of the generated data; the result is the same bit for bit whatever the number of workers.
        workers: processes that generate; None: one per core. They are spawned: a script that calls this needs its
            `if __name__ == "__main__"`.
        memory_gb: 10^9 bytes that a folder of shards may take; what does not fit is read when its turn comes. A file in
            one piece is read whole.

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
