"""Diffusion Policy's demonstrations of PushT: transitions, split and download.

The store pusht_cchi_v7_replay.zarr has 206 human demonstrations, 25,650 rows of state (agent x, y,
block x, y in px, angle), action (target x, y of the agent in px) and keypoint (nine points of the
block in px); its images are not read. Observations and actions are those of `envs.pusht`; the
keypoints are the recorded ones.

The files have no rewards. They are computed as online, from the state *after* the action: reward
min(coverage / .95, 1) - 1, mask 0 where coverage exceeds .95. The last row of an episode has no
successor in the file and is dropped, as in `ogbench`: a repeated state would be a transition that
never happened, and the step that completes the task is not recorded. In the published data coverage
therefore stays below .95 (at most .90), and no mask is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import fetch, replay_zarr
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.envs.pusht import GOAL, observe, scale
from wgflow_rl.utils.cli import UserError

STORE = "pusht_cchi_v7_replay.zarr"
ARCHIVE = "pusht.zip"  # has pusht/STORE
SERVER = "https://diffusion-policy.cs.columbia.edu/data/training"
PLACES = (STORE, f"pusht/{STORE}", f"{STORE}.zip", f"pusht/{STORE}.zip", ARCHIVE)
SHAPES = {"state": (5,), "action": (2,), "keypoint": (9, 2)}  # of a row
# SHA-256 of the arrays' little-endian bytes, from a copy with the published numbers of episodes and
# rows. The archive's own digest is not published.
SHA256 = {
    "state": "dcdc539bfdba9fc01cba8d2fe91cc580539ec046a88b0ffbe91be5511948d4dc",
    "action": "6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f",
    "keypoint": "2419980734c1d41050f8fbf7513031e6e784168bafbe42bcec81fdebe44c6611",
    "episode_ends": "82db02e667c59a83fedb211ab9b84182591b75009df1385210d5235197f93d72",
}
HELD_OUT, SPLIT_SEED = 0.02, 42  # val_ratio and seed of Diffusion Policy's configurations
THRESHOLD = 0.95  # coverage above which the task is done
# Outline of the block in its own frame (px): a bar of 120 x 30 and a stem of 30 x 90.
OUTLINE = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float
)


def load(folder: Path, env: str, *, memory: float) -> tuple[Episodes, Episodes]:
    """Load the (training, validation) demonstrations; see `contents`."""
    train, validation = contents(folder, env)
    return train, validation


def contents(path: Path, env: str) -> Iterator[Episodes]:
    """Read the training, then the validation demonstrations.

    Args:
        path: the store, a zip archive that holds it, or a folder with one of them (see `find`).
        env: "pusht" or "pusht-keypoints".

    Raises:
        ValueError: The message names the store and what is wrong.
        FileNotFoundError: See `find`.
        UserError: If zarr or shapely is not installed.
    """
    store = find(path)
    keypoints = envs.parse(env).kind == "keypoints"
    names = ["state", "action", "keypoint"] if keypoints else ["state", "action"]
    buffer = replay_zarr.read(store, {name: SHAPES[name] for name in names})
    try:
        parts = split(len(buffer.episode_ends))
    except ValueError as error:
        raise ValueError(f"{store}: {error}") from error
    known = "as published" if not altered(buffer) else "not the published data"
    columns = _columns(buffer, keypoints=keypoints)
    starts = np.concatenate([[0], buffer.episode_ends[:-1]])
    for name, chosen in zip(("training", "validation"), parts, strict=True):
        # The last row of each episode is left out.
        rows = np.concatenate(
            [np.arange(starts[i], buffer.episode_ends[i] - 1) for i in chosen]
        ).astype(np.int64)
        yield Episodes(
            **{key: column[rows] for key, column in columns.items()},
            env=env,
            source=f"{store} ({name}, {known})",
        )


def _columns(buffer: replay_zarr.ReplayBuffer, *, keypoints: bool) -> dict[str, np.ndarray]:
    """The arrays of `Episodes` for all rows; those of the last row of an episode are meaningless."""
    state = buffer.arrays["state"].astype(np.float64)
    if keypoints:
        points = buffer.arrays["keypoint"].reshape(len(state), -1)
        observation = scale(np.concatenate([points, state[:, :2]], axis=1, dtype=np.float64))
    else:
        observation = observe(state, "state")
    covered = np.roll(coverage(state), -1)
    done = covered > THRESHOLD
    last = np.zeros(len(state), bool)
    last[buffer.episode_ends - 1] = True
    return {
        "observations": observation.astype(np.float32),
        "actions": scale(buffer.arrays["action"].astype(np.float64)).astype(np.float32),
        "next_observations": np.roll(observation, -1, axis=0).astype(np.float32),
        "rewards": (np.minimum(covered / THRESHOLD, 1) - 1).astype(np.float32),
        "masks": 1 - done.astype(np.float32),
        "terminals": np.roll(last, -1) | done,
    }


def coverage(state: np.ndarray) -> np.ndarray:
    """area(block ∩ goal) / area(goal) of states [..., 5], by shapely.

    Raises:
        UserError: If shapely is not installed.
    """
    try:
        import shapely
    except ModuleNotFoundError as error:
        raise UserError(f"rewards of PushT need shapely: {replay_zarr.INSTALL}") from error
    x, y, angle = np.moveaxis(np.asarray(state, dtype=np.float64)[..., 2:, None], -2, 0)
    goal, block = shapely.polygons(_outline(*GOAL)), shapely.polygons(_outline(x, y, angle))
    return np.asarray(shapely.area(shapely.intersection(block, goal)) / shapely.area(goal))


def _outline(x, y, angle) -> np.ndarray:
    """Corners [..., 8, 2] of the block in the world."""
    cos, sin, (u, v) = np.cos(angle), np.sin(angle), OUTLINE.T
    return np.stack([x + cos * u - sin * v, y + sin * u + cos * v], axis=-1)


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the (training, validation) episodes, increasing.

    2 % of the episodes, at least one, are for validation, drawn with Diffusion Policy's seed.

    Raises:
        ValueError: For fewer than two episodes.
    """
    if count < 2:
        raise ValueError(f"{count} episode; wanted at least 2, one for training and one held out")
    held_out = max(1, round(HELD_OUT * count))
    validation = np.random.default_rng(SPLIT_SEED).choice(count, held_out, replace=False)
    return np.setdiff1d(np.arange(count), validation), np.sort(validation)


def mirrored(data: Episodes) -> Episodes:
    """Reflect trajectories in the symmetry axis of the task, (x, y) -> (512 - y, 512 - x) in px.

    It maps the goal pose, the walls (to 1 px) and the dynamics to themselves, and the block's angle to pi/2 - angle.

    Raises:
        ValueError: For keypoints, whose reflections are other points of the block.
    """
    if data.env != "pusht":
        raise ValueError(
            f"--mirror needs the observations of pusht; those of {data.env} are keypoints"
        )
    # x, y -> -y, -x for agent and block; cos, sin -> sin, cos.
    order, sign = [1, 0, 3, 2, 5, 4], np.array([-1, -1, -1, -1, 1, 1], np.float32)
    return replace(
        data,
        observations=sign * data.observations[:, order],
        next_observations=sign * data.next_observations[:, order],
        actions=-data.actions[:, [1, 0]],
    )


def altered(buffer: replay_zarr.ReplayBuffer) -> list[str]:
    """Names of the arrays whose contents are not those of the published data."""
    found = {**buffer.arrays, "episode_ends": buffer.episode_ends}
    return [name for name, array in found.items() if _sha256(array) != SHA256[name]]


def _sha256(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.data).hexdigest()


def find(path: Path) -> Path:
    """Find the store in a folder; a store or a file is returned as it is.

    Raises:
        FileNotFoundError: The message says where the data are to be had.
    """
    if path.is_file() or (path / ".zgroup").exists() or (path.is_dir() and path.suffix == ".zarr"):
        return path
    for place in PLACES:
        if (path / place).exists():
            return path / place
    found = sorted(p.name for p in path.iterdir()) if path.is_dir() else ["no such folder"]
    raise FileNotFoundError(
        f"{path} has no {STORE} and no {ARCHIVE}; found {', '.join(found[:8]) or 'nothing'}. Download the data "
        f"(31 MB) with 'python -m wgflow_rl.data download pusht --folder {path}', or fetch {SERVER}/{ARCHIVE} by hand "
        "and name the archive, or the folder unpacked from it: --data PATH."
    )


def files(folder: Path) -> list[Path]:
    """Files of the data directly in a folder: an archive, or those of a store."""
    return [
        file
        for place in (folder / name for name in (STORE, f"{STORE}.zip", ARCHIVE))
        for file in ([place] if place.is_file() else sorted(place.rglob("*")))
        if file.is_file()
    ]


def download(env: str, folder: Path, *, mirror: str | None = None) -> Path:
    """Download Diffusion Policy's archive unless `folder` has the data; return the folder.

    The archive is read where it is, without unpacking. It is accepted if its arrays are the
    published ones.

    Args:
        env: environment name.
        folder: folder to download to.
        mirror: URL of a server or folder that has pusht.zip, used instead of the official one.

    Raises:
        ConnectionError: The message names alternatives if the file cannot be downloaded.
    """
    try:
        find(folder)
    except FileNotFoundError:
        server = (mirror or SERVER).rstrip("/")
        try:
            fetch.fetch(f"{server}/{ARCHIVE}", folder / ARCHIVE, verify=_verify)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Try --mirror with the URL of a folder that has {ARCHIVE}, or put {ARCHIVE} or {STORE} into "
                f"{folder} by hand"
            ) from error
    return folder


def _verify(path: Path) -> None:
    """Compare all low-dimensional arrays with the published ones.

    Raises:
        ValueError: The message names the arrays that differ.
    """
    if names := altered(replay_zarr.read(path, SHAPES)):
        raise ValueError(f"its {', '.join(names)} are not the published ones, by SHA-256")
