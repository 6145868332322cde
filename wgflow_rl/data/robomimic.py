"""Robomimic's HDF5 files: reading, validation and download.

A file is {lift,can,square}/mh/low_dim_v15.hdf5 or low_dim_v141.hdf5. Group data/demo_i has the
arrays of a demonstration, mask/NAME the names of the demonstrations of a split. The conventions of
Q-chunking and DFP are applied on reading: reward - 1, mask = 1 - done, observations and actions
unchanged. Reward and done of row t describe the state *after* its action, as online; every
demonstration is a trajectory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import fetch, hdf5
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.envs.robomimic import KEYS

FILES = ("low_dim_v15.hdf5", "low_dim_v141.hdf5", "low_dim.hdf5")  # in order of preference
SERVER = "https://downloads.cs.stanford.edu/downloads/rt_benchmark"  # of robomimic 0.3
OFFICIAL = "low_dim_v141.hdf5"
SPLITS = ("train", "valid")
HELD_OUT = 10  # in a file without masks, every tenth demonstration is for validation
# sizes of the parts of an observation; "object" has the rest
WIDTHS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
GRIPPERS = {"PandaGripper": "default"}  # robosuite's default gripper of a Panda
CONTROL = (
    "type",
    "input_type",
    "input_max",
    "input_min",
    "output_max",
    "output_min",
    "impedance_mode",
    "kp",
)


def path_of(env: str) -> Path:
    """Path of an environment's file in robomimic's layout: lift/mh/low_dim_v15.hdf5."""
    return Path(envs.parse(env).suite, "mh", FILES[0])


def load(folder: Path, env: str, *, memory: float) -> tuple[Episodes, Episodes]:
    """Load the (training, validation) demonstrations of a folder."""
    train, validation = contents(folder, env)
    return train, validation


def contents(path: Path, env: str) -> Iterator[Episodes]:
    """Read the training, then the validation demonstrations of a folder or file."""
    file = path if path.is_file() else find(path, env)
    for split in SPLITS:
        yield read(file, env, split)


def find(folder: Path, env: str) -> Path:
    """Find an environment's file in robomimic's subfolder or the folder itself.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    own = path_of(env).parent
    for place in (folder / own, folder):
        for name in FILES:
            if (place / name).exists():
                return place / name
    found = (
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*.hdf5"))
        if folder.is_dir()
        else []
    )
    raise FileNotFoundError(
        f"{folder} has no {own / FILES[0]}; found {', '.join(found) or 'no .hdf5 file'}. Omit --data to generate "
        f"demonstrations, or put robomimic's own file there (names it may have: {', '.join(FILES)})."
    )


def download(env: str, folder: Path, *, mirror: str | None = None) -> Path:
    """Download robomimic 0.3's file unless `folder` has one; return the folder.

    Args:
        env: environment name.
        folder: folder to download to.
        mirror: URL of a server with robomimic's layout, MIRROR/lift/mh/low_dim_v141.hdf5, used
            instead of it.

    Raises:
        ConnectionError: The message names alternatives if the file cannot be downloaded.
    """
    try:
        find(folder, env)
    except FileNotFoundError:
        own, server = path_of(env).parent, (mirror or SERVER).rstrip("/")
        try:
            sums = fetch.checksums(server)
            fetch.fetch(
                f"{server}/{own}/{OFFICIAL}",
                folder / own / OFFICIAL,
                sha256=sums.get(f"{own}/{OFFICIAL}"),
                verify=lambda part: list(contents(part, env)),
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Try --mirror, put {OFFICIAL} or the newer {FILES[0]} into {folder / own} by hand, or "
                f"generate demonstrations: python -m wgflow_rl.data generate {env}"
            ) from error
    return folder


def read(path: Path, env: str, split: str = "train") -> Episodes:
    """Read the demonstrations of a split, "train" or "valid", ordered by number.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: The message names file and demonstration if an array is missing, truncated, of
            another shape or stored in another file, or if the environment or controller differs.
    """
    with hdf5.opened(path, kind="a robomimic data set", install=envs.robomimic.INSTALL) as file:
        _check_environment(path, file.get("data").attrs, env)
        parts = [_read_demonstration(file, f"data/{name}") for name in _demonstrations(file, split)]
    for key in ("observations", "next_observations", "actions"):
        if len(widths := {part[key].shape[1] for part in parts}) > 1:
            raise ValueError(
                f"{path}: the sizes of {key} in the demonstrations are {sorted(widths)}; wanted one size"
            )
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Episodes(**together, env=env, source=f"{path} ({split})")


def _demonstrations(file: hdf5.Contents, split: str) -> list[str]:
    """Names of the demonstrations of a split, ordered by number."""
    path, found = file.path, list(file.get("data"))
    if strange := [name for name in found if not re.fullmatch(r"demo_\d{1,9}", name)]:
        raise ValueError(f"{path}: data has {strange[0]!r}; wanted only demo_0, demo_1, ...")
    every = sorted(found, key=lambda name: int(name.removeprefix("demo_")))
    masks = {
        name: {demo.decode() for demo in file.read(f"mask/{name}")}
        for name in SPLITS
        if file.array(f"mask/{name}") is not None
    }
    if masks:
        if lacking := set(SPLITS) - masks.keys():
            raise ValueError(
                f"{path} has mask/{min(masks)} but no mask/{lacking.pop()}; wanted both, or neither"
            )
        if missing := set.union(*masks.values()) - set(every):
            raise ValueError(f"{path}: a mask names {min(missing)}, which is not in data")
        if both := set.intersection(*masks.values()):
            raise ValueError(f"{path}: {min(both)} is in the masks for training and for validation")
        names = [name for name in every if name in masks[split]]
    else:
        held_out = set(every[HELD_OUT - 1 :: HELD_OUT])
        names = [name for name in every if (name in held_out) == (split == "valid")]
    if not names:
        raise ValueError(
            f"{path}: no demonstration in split {split}; it has {len(every)} and masks {list(masks)}"
        )
    return names


def _read_demonstration(file: hdf5.Contents, demo: str) -> dict[str, np.ndarray]:
    """Read one demonstration as the arrays of `Episodes`."""
    where = f"{file.path}: /{demo}"
    length = file.get(demo).attrs.get("num_samples")
    length = len(file.array(f"{demo}/actions")) if length is None else int(length)
    observed = [f"{part}/{key}" for part in ("obs", "next_obs") for key in KEYS]
    arrays = {}
    for name in ("actions", "rewards", "dones", *observed):
        array = file.array(f"{demo}/{name}")
        if array is None:
            raise ValueError(
                f"{where} has no {name}; wanted low-dimensional data with {', '.join(KEYS)} in obs and next_obs"
            )
        if len(array) != length or length == 0:
            raise ValueError(
                f"{where}: {name} has {len(array)} rows, wanted {length}; the file looks truncated"
            )
        width = WIDTHS.get(name.rpartition("/")[2])
        row_shape = () if name in ("rewards", "dones") else (width or array.shape[-1],)
        if array.shape[1:] != row_shape or array.dtype.kind not in "biuf":
            raise ValueError(
                f"{where}: {name} is {array.dtype} {array.shape}; wanted numbers {(length, *row_shape)}"
            )
        arrays[name] = file.read(f"{demo}/{name}")
    if not np.isin(arrays["rewards"], (0, 1)).all():
        raise ValueError(
            f"{where}: rewards holds {np.unique(arrays['rewards'])[:5]}; wanted sparse rewards, 0 and 1. Record the "
            "file without reward_shaping."
        )
    dones = arrays["dones"].astype(np.float32)

    def concatenate(part: str) -> np.ndarray:
        return np.concatenate([arrays[f"{part}/{key}"] for key in KEYS], axis=1).astype(np.float32)

    return {
        "observations": concatenate("obs"),
        "actions": arrays["actions"].astype(np.float32),
        "next_observations": concatenate("next_obs"),
        "rewards": arrays["rewards"].astype(np.float32) - 1,
        "masks": 1 - dones,
        "terminals": np.arange(length) == length - 1,
    }


def _check_environment(path: Path, attributes: Mapping[str, Any], env: str) -> None:
    """Check that actions and rewards have the same meaning here.

    Raises:
        ValueError: If task, robot, gripper, control frequency, rewards or controller differ.
    """
    args: Mapping[str, Any] = json.loads(attributes["env_args"])
    ours = envs.robomimic.env_args(envs.parse(env).suite)
    if args["env_name"] != ours["env_name"]:
        raise ValueError(
            f"{path} was recorded in {args['env_name']}, but {env} is {ours['env_name']}"
        )
    settings = _settings(ours["env_kwargs"])
    for name, came in _settings(args["env_kwargs"]).items():
        if came != (wanted := settings[name]):
            raise ValueError(
                f"{path} was recorded with {name} {came!r}; here it is {wanted!r}, so its actions or rewards would "
                "have a different meaning"
            )
    theirs, controller = _arm_controller(args), envs.robomimic.CONTROLLER
    for name in CONTROL:
        if np.any(theirs[name] != controller[name]):
            raise ValueError(
                f"{path} was recorded with a controller whose {name} is {theirs[name]}; here it is {controller[name]}, "
                "so its actions would have a different effect"
            )


def _settings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the simulator in one spelling, with robosuite's defaults filled in."""
    robots = kwargs["robots"]
    grippers = kwargs.get("gripper_types", "default")
    grippers = [grippers] if isinstance(grippers, str) else list(grippers or [None])
    return {
        "robots": robots if isinstance(robots, str) else ", ".join(robots),
        "gripper_types": ", ".join(GRIPPERS.get(str(each), str(each)) for each in grippers),
        "control_freq": kwargs.get("control_freq", 20),
        "reward_shaping": kwargs.get("reward_shaping", False),
    }


def _arm_controller(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's controller in the `env_args` of any robosuite version, with defaults filled in.

    Before 1.5, `input_type` was called `control_delta`, which 1.5 ignores.
    """
    found = args["env_kwargs"]["controller_configs"]
    found = found[0] if isinstance(found, list) else found
    arm = (
        dict(found["body_parts"].get("right") or found["body_parts"]["arms"]["right"])
        if "body_parts" in found
        else dict(found)
    )
    if "control_delta" in arm:
        arm["input_type"] = "delta" if arm.pop("control_delta") else "absolute"
    return envs.robomimic.CONTROLLER | arm
