"""Sources of offline data, all ending in `Episodes`: OGBench's files, or data generated with OGBench's own oracles."""

from __future__ import annotations

import os
from pathlib import Path

from wgflow_rl import envs
from wgflow_rl.data import generated, ogbench
from wgflow_rl.data.episodes import Episodes

__all__ = ["Episodes", "cache_root", "load"]


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
) -> tuple[Episodes, Episodes]:
    """(training, validation) data of an environment, labelled for its task.

    Args:
        env: a name of `envs.names()`.
        folder: holds X.npz and X-val.npz (official or generated), read whole: the next three arguments are then not
            used. None: generate once into the cache, then read it.
        rows: transitions to generate (rounded up to whole trajectories); None: as many as the official set. A tenth as
            many are added for validation.
        seed: of the generated data; the result is the same bit for bit whatever the number of workers.
        workers: processes that generate; None: one a core. They are spawned: a script that calls this needs its
            `if __name__ == "__main__"`.
    Raises: ValueError, FileNotFoundError: see `ogbench.read` and `ogbench.pair`.
    """
    envs.check_name(env)
    if folder is None:
        folder = generated.generate(
            env, root=cache_root(), rows=rows, seed=seed, workers=workers, progress=progress
        )
    train, validation = ogbench.pair(Path(folder).expanduser(), env)
    inner = envs.make(env)
    return ogbench.read(train, env, inner), ogbench.read(validation, env, inner)
