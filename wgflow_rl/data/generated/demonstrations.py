"""Scripted demonstrations of Lift, Can and Square, in robomimic's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import robomimic
from wgflow_rl.data.generated.controllers import OPERATORS, PLANS, Operator, Scene
from wgflow_rl.utils.files import replacing

Row = dict[str, np.ndarray]

VERSION = 1  # part of the cache's folder name: increase it when the demonstration of a seed changes
# Transitions in robomimic's 300 multi-human demonstrations, rounded.
OFFICIAL_ROWS = {"lift": 31_000, "can": 63_000, "square": 81_000}


def official_rows(env: str) -> int:
    """Number of transitions in robomimic's own file, rounded."""
    return OFFICIAL_ROWS[envs.parse(env).suite]


def files(folder: Path, env: str) -> list[Path]:
    """Paths that `write` creates."""
    return [folder / robomimic.path_of(env)]


def prepare(env: str) -> Callable[[int, int], Row]:
    """Build a simulator; return a function that records successful demonstrations.

    The function maps (seed, rows) to the arrays of at least `rows` rows.
    """
    suite = envs.parse(env).suite
    simulator = envs.robomimic.Robosuite(suite)

    def part(seed: int, rows: int) -> Row:
        rng = np.random.default_rng(seed)
        demos: list[tuple[str, Row]] = []
        while sum(len(demo["actions"]) for _, demo in demos) < rows:
            operator = OPERATORS[rng.integers(len(OPERATORS))]
            demo = attempt(simulator, suite, operator, seed=int(rng.integers(2**31)))
            if demo["rewards"][-1] > 0:  # keep successes only, as in robomimic's human data
                demos.append((operator.name, demo))
        together = {key: np.concatenate([demo[key] for _, demo in demos]) for key in demos[0][1]}
        return together | {
            "lengths": np.array([len(demo["actions"]) for _, demo in demos]),
            "operators": np.array([name for name, _ in demos]),
            "model_file": np.array(model_xml(simulator)),
        }

    return part


def attempt(
    simulator: envs.robomimic.Robosuite, suite: str, operator: Operator, *, seed: int
) -> Row:
    """Run one attempt until success or the time limit; return its arrays in robomimic's layout.

    Row t holds the simulator state, the observations before and after the action, and the reward (0
    or 1) of the state after it.
    """
    rng = np.random.default_rng((seed, 1))
    observation, _ = simulator.reset(seed=seed)
    scene = Scene.from_observation(observation, suite)
    actions = operator.actions(PLANS[suite](scene), rng)
    next(actions)
    rows: list[Row] = []
    for _ in range(envs.robomimic.LIMITS[suite]):
        action = actions.send(scene)
        state = simulator.simulator.sim.get_state().flatten()
        after, reward, done, _, _ = simulator.step(action)
        row: dict[str, Any] = {"actions": action.astype(np.float64), "states": state}
        row |= {"rewards": reward + 1.0, "dones": np.int64(done)}
        row |= {f"obs/{key}": part for key, part in _split_observation(observation).items()}
        row |= {f"next_obs/{key}": part for key, part in _split_observation(after).items()}
        rows.append(row)
        if done:
            break
        observation, scene = after, Scene.from_observation(after, suite)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _split_observation(observation: np.ndarray) -> dict[str, np.ndarray]:
    """Split an observation [S] into robomimic's arrays."""
    ends = np.cumsum([robomimic.WIDTHS[key] for key in envs.robomimic.KEYS[:-1]])
    return dict(zip(envs.robomimic.KEYS, np.split(observation, ends), strict=True))


def model_xml(simulator: envs.robomimic.Robosuite) -> str:
    """XML of the simulator's model, with mesh paths relative to robosuite's parent folder."""
    import robosuite

    root = Path(robosuite.__file__).parent.parent
    return simulator.simulator.model.get_xml().replace(f"{root}/", "")


def write(paths: list[Path], env: str, train: list[Row], validation: list[Row]) -> None:
    """Write all parts atomically to the one file of `paths`; equal parts give equal bytes."""
    import h5py

    (path,) = paths
    path.parent.mkdir(parents=True, exist_ok=True)
    masks: dict[str, list[str]] = {}
    total = number = 0
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group("data")
        for split, parts in zip(robomimic.SPLITS, (train, validation), strict=True):
            for part in parts:
                ends = np.cumsum(part["lengths"])
                for operator, length, end in zip(
                    part["operators"], part["lengths"], ends, strict=True
                ):
                    demo = group.create_group(f"demo_{number}")
                    for key in sorted(part.keys() - {"lengths", "operators", "model_file"}):
                        demo[key] = part[key][end - length : end]
                    demo.attrs["num_samples"] = int(length)
                    demo.attrs["model_file"] = str(part["model_file"])
                    for mask in (split, operator, f"{operator}_{split}"):
                        masks.setdefault(str(mask), []).append(f"demo_{number}")
                    number, total = number + 1, total + int(length)
        group.attrs["total"] = total
        group.attrs["env_args"] = json.dumps(envs.robomimic.env_args(envs.parse(env).suite))
        for name, demos in masks.items():
            file[f"mask/{name}"] = np.array(demos, dtype="S")
