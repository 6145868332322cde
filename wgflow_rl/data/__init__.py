"""Offline data sets as `Episodes` or `Shards`: official files, or generated data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wgflow_rl import envs
from wgflow_rl.data import custom, generated, ogbench, pusht, robomimic
from wgflow_rl.data.arrays import from_rows, from_trajectories, split
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.data.shards import Shards
from wgflow_rl.utils.files import expand_user

__all__ = [
    "SOURCES",
    "Episodes",
    "Shards",
    "cache_root",
    "from_rows",
    "from_trajectories",
    "load",
    "reader",
    "register",
    "split",
]

# Readers, modules or `custom.Reader`, with the names of `envs.SOURCES`. Each provides
# load(folder, env, memory=), contents(path, env), which reads every file, and
# download(env, folder, mirror=); nothing else depends on names or formats of files.
SOURCES: dict[str, Any] = {"ogbench": ogbench, "pusht": pusht, "robomimic": robomimic}
BUILT_IN = tuple(SOURCES)


def register(source: str, read: custom.Read) -> None:
    """Register the reader of a source of environments: see `envs.register`.

    Args:
        source: name of the source. Without a reader, its data are X.npz and, if present, X-val.npz
            for the environment X, in a form that `from_rows` accepts.
        read: function of (folder, env) that returns (training, validation) `Episodes`. The folder
            is None without `--data`.

    Raises:
        ValueError: If the source is one of wgflow's.
    """
    if source in BUILT_IN:
        raise ValueError(f"source is {source!r}, which is one of wgflow's; choose another name")
    SOURCES[source] = custom.Reader(read)


def reader(env: str) -> Any:
    """The reader of an environment's data. Raises: ValueError if the environment is unknown."""
    return SOURCES.get(envs.parse(env).source, custom.DEFAULT)


def cache_root() -> Path:
    """Folder of generated data: $WGFLOW_DATA, or ~/.cache/wgflow."""
    return expand_user(os.environ.get("WGFLOW_DATA") or "~/.cache/wgflow")


def load(
    env: str,
    *,
    folder: str | Path | None = None,
    rows: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    memory_gb: float = 4.0,
    history: int = 1,
    episodes: int | None = None,
    mirror: bool = False,
) -> tuple[Episodes | Shards, Episodes]:
    """Load the (training, validation) data of an environment, labelled for its task.

    Args:
        env: one of `envs.names()`.
        folder: folder with the source's files, official or generated. None: generate the data into
            the cache unless they are there; data that cannot be generated (PushT) are read from
            `cache_root()`, and a registered reader receives None. With a folder, `rows`, `seed`,
            `workers` and `progress` are unused.
        rows: training transitions to generate, rounded up to whole parts. None: as many as the
            official set. A tenth as many are added for validation.
        seed: seed of the generated data, which are bit-identical for any number of workers.
        workers: worker processes of the generation; None: one per core. They do not import the
            caller's main module.
        progress: show a progress bar.
        memory_gb: memory for a folder of shards, in 10^9 bytes; shards that do not fit take turns.
            A data set in a single file is read whole.
        history: observations are the last `history` ones as one vector, as in `envs.make`.
        episodes: number of training trajectories, drawn at random with seed 42; None: all.
        mirror: add the mirror images of the training data, if the task is symmetric.

    Raises:
        ValueError: See the source's `load`.
        FileNotFoundError: See the source's `load`.
    """
    name, source = envs.parse(env).source, reader(env)
    if folder is None and not isinstance(source, custom.Reader):
        if name in generated.MAKERS:
            folder = generated.generate(
                env, root=cache_root(), rows=rows, seed=seed, workers=workers, progress=progress
            )
        else:
            folder = cache_root()  # where `python -m wgflow_rl.data download` puts them
    if folder is not None:
        folder = expand_user(folder)
    train, validation = source.load(folder, env, memory=1e9 * memory_gb)
    if history == 1 and episodes is None and not mirror:
        return train, validation
    if not isinstance(train, Episodes):
        raise ValueError(
            f"{folder} holds shards, which are read as they are; --history and --data-episodes need a single file"
        )
    if episodes is not None:
        train = train.subset(episodes, seed=42)
    if mirror:
        reflect = getattr(source, "mirrored", None)
        if reflect is None:
            raise ValueError(f"--mirror needs a task with a mirror symmetry, which {env} has not")
        train = train + reflect(train)
    return train.with_history(history), validation.with_history(history)
