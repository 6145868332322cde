"""OGBench's files (X.npz and X-val.npz): reading, task labels, and the official download."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import npz
from wgflow_rl.data.episodes import Episodes

NEEDED = ("observations", "actions", "terminals", "qpos")


def load(folder: Path, env: str) -> tuple[Episodes, Episodes]:
    """(training, validation) data of a folder's two files. Raises: as `pair` and `read`."""
    train, validation = pair(folder, env)
    inner = envs.make(env)
    return read(train, env, inner), read(validation, env, inner)


def read(path: Path, env: str, inner: Any = None) -> Episodes:
    """Read one file and label it for the task of `env`.

    The last row of each trajectory has no successor in the file, so it is dropped. Reward and mask of a row are those
    OGBench's loader gives: read from the state *before* the action (`qpos`), exactly as the environment does online.

    Args:
        inner: an environment made by `envs.make(env)`, to save making another.
    Raises: FileNotFoundError; ValueError naming the file when it is cut, holds objects (a pickle), lacks an array, has
        NaN, or belongs to another environment. Rows in messages count from 0, as in the file.
    """
    from ogbench.relabel_utils import relabel_dataset

    arrays = _arrays(path)
    inner = envs.make(env) if inner is None else inner
    _check(path, arrays, env, inner)
    ends = arrays["terminals"].astype(bool)
    keep = ~ends
    if not keep.any():
        raise ValueError(f"{path}: every row ends a trajectory, so there is not one transition in it")
    following = np.roll(keep, 1)
    following[0] = False
    labels = {name: arrays[name][keep] for name in arrays if name in ("qpos", "button_states")}
    inner.reset(seed=0)
    relabel_dataset(env, inner, labels)
    return Episodes(
        observations=arrays["observations"][keep].astype(np.float32),
        actions=arrays["actions"][keep].astype(np.float32),
        next_observations=arrays["observations"][following].astype(np.float32),
        rewards=labels["rewards"].astype(np.float32),
        masks=labels["masks"].astype(np.float32),
        terminals=np.roll(ends, -1)[keep],
        env=env,
        source=str(path),
    )


def _check(path: Path, arrays: dict[str, np.ndarray], env: str, inner: Any) -> None:
    """Raises: ValueError naming file, array and row if these are not whole data of this environment."""
    rows = len(arrays["observations"])
    wanted = {
        "observations": inner.observation_space.shape[0],
        "actions": inner.action_space.shape[0],
        "qpos": inner.unwrapped.model.nq,
    }
    if envs.parse(env).suite.startswith(("scene", "puzzle")):
        wanted["button_states"] = inner.unwrapped._num_buttons  # their labels need more than qpos
    another = f"this is data of another environment than {env}. Give --data the folder of the right files."
    for name, size in wanted.items():
        if name not in arrays:
            raise ValueError(f"{path} has no {name}; it holds {', '.join(arrays)}: {another}")
        if arrays[name].shape != (rows, size):
            raise ValueError(f"{path}: {name} is {arrays[name].shape}, wanted ({rows}, {size}): {another}")
        finite = np.isfinite(arrays[name]).all(1)
        if not finite.all():
            raise ValueError(
                f"{path}: {name} is not finite in row {np.argmin(finite)} ({np.sum(~finite)} such rows). Remove that "
                "trajectory, or download or generate the file again."
            )
    if "maze" in env:
        # Mazes differ in their walls alone: no shape tells them apart.
        maze = inner.unwrapped
        corner = np.array([maze._offset_x, maze._offset_y])
        columns, lines = np.floor((arrays["qpos"] + corner) / maze._maze_unit + 0.5).astype(int).T
        height, width = maze.maze_map.shape
        inside = (lines >= 0) & (lines < height) & (columns >= 0) & (columns < width)
        free = inside & (maze.maze_map[lines.clip(0, height - 1), columns.clip(0, width - 1)] == 0)
        if not free.all():
            row = np.argmin(free)
            raise ValueError(
                f"{path}: position {arrays['qpos'][row]} of row {row} is inside a wall: {another}"
            )
    if not arrays["terminals"].astype(bool)[-1]:
        raise ValueError(f"{path}: the last row, {rows - 1}, does not end a trajectory; the file looks cut")


def pair(folder: Path, env: str) -> tuple[Path, Path]:
    """The two files of an environment in a folder. Raises: FileNotFoundError naming what is there instead."""
    stem = envs.parse(env).dataset
    train, validation = folder / f"{stem}.npz", folder / f"{stem}-val.npz"
    missing = [p.name for p in (train, validation) if not p.exists()]
    if missing:
        found = sorted(p.name for p in folder.glob("*.npz")) if folder.is_dir() else []
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; found {', '.join(found) or 'no .npz file'}. "
            "Leave --data out to generate the data, or download the official files with "
            f"'python -m wgflow_rl.data download {env} --folder {folder}'."
        )
    return train, validation


def download(env: str, folder: Path) -> tuple[Path, Path]:
    """Fetch the official files through OGBench. Raises: ConnectionError saying what to do when it cannot be reached."""
    import ogbench

    stem = envs.parse(env).dataset
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ogbench.download_datasets([stem], str(folder))
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"OGBench's server did not give {stem}.npz ({error}). Put {stem}.npz and {stem}-val.npz into {folder} by "
            f"hand, or generate data of the same kind: python -m wgflow_rl.data generate {env}"
        ) from error
    return pair(folder, env)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = npz.read(path)
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    lengths = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or lengths["observations"] in ((), (0,)):
        raise ValueError(f"{path}: its arrays have different lengths or none: {lengths}")
    if arrays["terminals"].ndim != 1:
        raise ValueError(f"{path}: terminals is {arrays['terminals'].shape}; wanted one axis, an entry a row")
    return arrays
