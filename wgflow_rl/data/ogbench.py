"""OGBench's data files: reading, labels and download.

A data set X is X.npz and X-val.npz, or shards X-000.npz, X-000-val.npz, X-001.npz, ...
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import fetch, npz
from wgflow_rl.data.episodes import Episodes, row_bytes
from wgflow_rl.data.shards import Shard, Shards
from wgflow_rl.envs.rendering import importing_simulators

# A public copy of the official files, without the 100M sets (OGBench's issue 49).
MIRROR = "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main"
LABELS = ("qpos", "button_states")  # arrays that determine rewards and masks
ENDS = ("terminals", "timeouts")  # arrays that end trajectories; only D4RL's files have timeouts


def load(folder: Path, env: str, *, memory: float) -> tuple[Episodes | Shards, Episodes]:
    """Load the (training, validation) data of a folder: X.npz whole, or shards.

    Shards occupy at most `memory` bytes. This reads the headers and trajectory ends of each, and
    the validation data of the first.
    """
    pairs, task = files(folder, env), fix_task(envs.make(env))
    train, validation = pairs[0]
    if train.name == f"{envs.parse(env).dataset}.npz":
        return read(train, env, task), read(validation, env, task)
    shards = [_shard(train, env, task) for train, _ in pairs]
    for _, partner in pairs:
        _check_headers(partner, env, task)
    held_out = read(validation, env, task)
    shards = Shards(
        shards, widths=held_out.widths, read=lambda path: read(path, env, task), memory=memory
    )
    return shards, held_out


def contents(path: Path, env: str) -> Iterator[Episodes]:
    """Verify and read every file of a folder, or a single file."""
    task = fix_task(envs.make(env))
    for file in [path] if path.is_file() else itertools.chain(*files(path, env)):
        npz.verify(file)
        yield read(file, env, task)


def read(path: Path, env: str, task: Any) -> Episodes:
    """Read one file and compute the rewards and masks of the task of `env`.

    The last row of each trajectory has no successor in the file and is dropped. Rewards and masks
    are those of OGBench's loader: functions of the state *before* the action (`qpos`), exactly as
    online.

    Args:
        path: npz file.
        env: environment name, including the task.
        task: `fix_task(envs.make(env))`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: The message names the file if it is truncated, contains Python objects, lacks an
            array, has NaN, or belongs to another environment. Rows in messages count from 0, as in
            the file.
    """
    _check_headers(path, env, task)
    ends = _ends(path)
    keep = ~ends
    # Read arrays one at a time: the peak memory of a shard should not be a multiple of its size.
    rewards, masks = _labels(path, env, task, keep)
    actions = npz.read(path, ("actions",))["actions"]
    _check_finite(path, "actions", actions)
    observations = npz.read(path, ("observations",))["observations"]
    _check_finite(path, "observations", observations)
    with np.errstate(over="ignore"):  # overflow to infinity, which Episodes rejects
        return Episodes(
            observations=observations[keep].astype(np.float32, copy=False),
            actions=actions[keep].astype(np.float32, copy=False),
            next_observations=observations[np.roll(keep, 1)].astype(np.float32, copy=False),
            rewards=rewards,
            masks=masks,
            terminals=np.roll(ends, -1)[keep],
            env=env,
            source=str(path),
        )


def fix_task(inner: Any) -> Any:
    """Set the environment's task and disable further resets.

    A reset draws from numpy's global generator, which the thread that reads shards must not touch.
    """
    inner.reset(seed=0)
    inner.reset()
    return SimpleNamespace(
        reset=lambda: None,
        unwrapped=inner.unwrapped,
        observation_space=inner.observation_space,
        action_space=inner.action_space,
    )


def relabel(episodes: Episodes, env: str) -> Episodes:
    """Replace rewards and masks by those of another task; read only what they depend on."""
    path = Path(episodes.source)
    rewards, masks = _labels(path, env, fix_task(envs.make(env)), ~_ends(path))
    return dataclasses.replace(episodes, rewards=rewards, masks=masks, env=env)


def _labels(path: Path, env: str, task: Any, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masks of the rows `keep` [rows] bool, float32."""
    from ogbench.relabel_utils import relabel_dataset

    states = npz.read(path, LABELS)
    for name, array in states.items():
        _check_finite(path, name, array)
    _check_walls(path, states["qpos"], env, task)
    labels = {name: array[keep] for name, array in states.items()}
    del states
    with np.errstate(over="ignore", invalid="ignore"):  # a state that overflows is at no goal
        relabel_dataset(env, task, labels)
    return labels["rewards"], labels["masks"]


def _check_headers(path: Path, env: str, task: Any) -> dict[str, npz.Member]:
    """Read the headers of a file. Raises: ValueError naming the first array that does not fit `env`."""
    members = npz.headers(path)
    wanted = {
        "observations": task.observation_space.shape,
        "actions": task.action_space.shape,
        "qpos": (task.unwrapped.model.nq,),
        "terminals": (),
    }
    if envs.parse(env).suite.startswith(("scene", "puzzle")):
        wanted["button_states"] = (task.unwrapped._num_buttons,)  # not a function of qpos
    if "timeouts" in members:
        wanted["timeouts"] = ()
    another = f"this is data of another environment than {env}. Give --data the right folder."
    for name in wanted:
        if name not in members:
            raise ValueError(
                f"{path} has no {name}; it holds {', '.join(members) or 'nothing'}: {another}"
            )
    lengths = {name: member.shape[:1] for name, member in members.items()}
    if len(set(lengths.values())) != 1 or lengths["observations"] in ((), (0,)):
        raise ValueError(f"{path}: its arrays have different lengths or none: {lengths}")
    (rows,) = lengths["observations"]
    for name, size in wanted.items():
        shape, kind = members[name].shape, members[name].dtype
        if name in ENDS and shape != (rows,):
            raise ValueError(f"{path}: {name} is {shape}; wanted one entry per row, {(rows,)}")
        if shape != (rows, *size):
            raise ValueError(f"{path}: {name} is {shape}, wanted {(rows, *size)}: {another}")
        if kind.kind not in ("biuf" if name in (*ENDS, "button_states") else "f"):
            raise ValueError(f"{path}: {name} is {kind}; wanted floating-point numbers")
    return members


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    finite = np.isfinite(array).all(1)
    if not finite.all():
        raise ValueError(
            f"{path}: {name} is not finite in row {np.argmin(finite)} ({np.sum(~finite)} such rows). Remove that "
            "trajectory, or download or generate the file again."
        )


def _check_walls(path: Path, qpos: np.ndarray, env: str, task: Any) -> None:
    """Raise ValueError if a position is inside a wall: mazes differ in nothing else."""
    if "maze" not in env:
        return
    maze = task.unwrapped
    corner = np.array([maze._offset_x, maze._offset_y])
    height, width = maze.maze_map.shape
    # Of ants and humanoids, the position of the torso.
    cells = np.floor((qpos[:, :2].astype(np.float64) + corner) / maze._maze_unit + 0.5)
    columns, lines = cells.clip(-1, max(height, width)).astype(int).T
    inside = (lines >= 0) & (lines < height) & (columns >= 0) & (columns < width)
    free = inside & (maze.maze_map[lines.clip(0, height - 1), columns.clip(0, width - 1)] == 0)
    if not free.all():
        row = np.argmin(free)
        raise ValueError(
            f"{path}: position {qpos[row, :2]} of row {row} is inside a wall: this is data of another environment than "
            f"{env}. Give --data the right folder."
        )


def _ends(path: Path) -> np.ndarray:
    """Ends of trajectories, [rows] bool: `terminals`, and D4RL's `timeouts` if the file has them.

    D4RL marks a trajectory that reached its goal in `terminals` and one that was cut off in `timeouts`.

    Raises:
        ValueError: If they are inconsistent.
    """
    ends: Any = False
    for name, values in npz.read(path, ENDS).items():
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{path}: {name} holds {np.unique(values)[:5]}; wanted 0 and 1")
        ends = ends | (values == 1)
    if not ends[-1]:
        raise ValueError(
            f"{path}: the last row, {len(ends) - 1}, does not end a trajectory; the file looks truncated"
        )
    if ends.all():
        raise ValueError(f"{path}: every row ends a trajectory, so there are no transitions")
    return ends


def _shard(path: Path, env: str, task: Any) -> Shard:
    members = _check_headers(path, env, task)
    rows = int((~_ends(path)).sum())
    held = rows * row_bytes((members["observations"].shape[1], members["actions"].shape[1]))
    raw = sum(members[name].nbytes for name in ("observations", "actions", "qpos"))
    lines, width = members["observations"].shape
    checks = lines * (width + 16)  # temporaries: one byte per number tested, and row indices
    recorded = [(name, m.shape, str(m.dtype), m.crc) for name, m in sorted(members.items())]
    return Shard(
        path, rows, reading=held + raw + checks, checksum=zlib.crc32(repr(recorded).encode())
    )


def files(folder: Path, env: str) -> list[tuple[Path, Path]]:
    """Pairs of training and validation files of an environment: one pair, or shards by number.

    Raises:
        FileNotFoundError: The message names missing and present files.
        ValueError: If the folder mixes both kinds.
    """
    stem = envs.parse(env).dataset
    found = sorted(p.name for p in folder.glob("*.npz")) if folder.is_dir() else []
    known = [re.fullmatch(rf"({re.escape(stem)}(?:-\d+)?)(-val)?\.npz", name) for name in found]
    parts = sorted({match[1] for match in known if match})
    if len(parts) > 1 and stem in parts:
        raise ValueError(
            f"{folder} holds {stem}.npz and shards like {parts[1]}.npz; keep them in separate folders"
        )
    pairs = [(folder / f"{part}.npz", folder / f"{part}-val.npz") for part in parts or [stem]]
    missing = [path.name for pair in pairs for path in pair if path.name not in found]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing[:4])}; found {', '.join(found[:8]) or 'no .npz file'}. "
            "Omit --data to generate the data, or download the official files with "
            f"'python -m wgflow_rl.data download {env} --folder {folder}'."
        )
    return pairs


def download(env: str, folder: Path, *, mirror: str | None = None, shards: int = 0) -> Path:
    """Download the official files that are missing; return the folder they are in.

    Args:
        env: environment name.
        folder: folder to download to; shards go to a subfolder.
        mirror: URL of a server with OGBench's layout, MIRROR/X.npz and MIRROR/X-val.npz, used
            instead of it.
        shards: number of shards of the 100M data set, MIRROR/...-100m-v0/X-000.npz and so on, of a
            million transitions each; 0: the ordinary data set.

    Raises:
        ConnectionError: The message names alternatives if a file cannot be downloaded.
    """
    with importing_simulators():
        from ogbench.utils import DATASET_URL
    name = envs.parse(env)
    server, parts = (mirror or DATASET_URL).rstrip("/"), [name.dataset]
    if shards:
        large = f"{name.suite}-{name.kind}-100m-v0"
        server, folder = f"{server}/{large}", folder / large
        parts = [f"{name.dataset}-{number:03d}" for number in range(shards)]
    wanted = [f"{part}{end}.npz" for part in parts for end in ("", "-val")]
    wanted = [file for file in wanted if not (folder / file).exists()]
    try:
        sums = fetch.checksums(server) if wanted else {}
        for file in wanted:
            fetch.fetch(f"{server}/{file}", folder / file, sha256=sums.get(file))
    except ConnectionError as error:
        other = "a public copy: --mirror " + MIRROR if mirror is None and not shards else "--mirror"
        ways = f"Try {other}, or put {', '.join(wanted[:2])} into {folder} by hand"
        if not name.suite.startswith(envs.ogbench.WALKERS):
            ways += f", or generate data of the same kind: python -m wgflow_rl.data generate {env}"
        raise ConnectionError(f"{error}. {ways}") from error
    return folder
