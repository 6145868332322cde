"""Demonstrations of Lift, Can and Square, recorded in robosuite: what `generated` makes for robomimic's tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import robomimic
from wgflow_rl.data.controllers import OPERATORS, PLANS, Operator, Scene

Row = dict[str, np.ndarray]

VERSION = 1  # raised when a demonstration of the same seed changes: an old cache is then left alone
# Transitions of robomimic's 300 multi-human demonstrations, rounded.
OFFICIAL_ROWS = {"lift": 31_000, "can": 63_000, "square": 81_000}


def official_rows(env: str) -> int:
    """About as many transitions as robomimic's own file has."""
    return OFFICIAL_ROWS[envs.parse(env).suite]


def files(folder: Path, env: str) -> list[Path]:
    """What `write` makes."""
    return [folder / robomimic.path_of(env)]


def prepare(env: str) -> Callable[[int, int], Row]:
    """A simulator made once: (seed, rows) -> successful demonstrations, one after another, of `rows` rows or more."""
    suite = envs.parse(env).suite
    simulator = envs.robomimic.Robosuite(envs.robomimic.env_args(suite))

    def part(seed: int, rows: int) -> Row:
        rng = np.random.default_rng(seed)
        demos: list[tuple[str, Row]] = []
        while sum(len(demo["actions"]) for _, demo in demos) < rows:
            operator = OPERATORS[rng.integers(len(OPERATORS))]
            demo = play(simulator, suite, operator, seed=int(rng.integers(2**31)))
            if demo["rewards"][-1] > 0:  # as with people, who hand in what succeeded
                demos.append((operator.name, demo))
        together = {key: np.concatenate([demo[key] for _, demo in demos]) for key in demos[0][1]}
        return together | {
            "lengths": np.array([len(demo["actions"]) for _, demo in demos]),
            "operators": np.array([name for name, _ in demos]),
            "model_file": np.array(model_of(simulator)),
        }

    return part


def play(simulator: envs.robomimic.Robosuite, suite: str, operator: Operator, *, seed: int) -> Row:
    """One attempt, to success or the time limit, as the arrays of a demonstration in robomimic's layout.

    Row t holds the state, the observation before and after the action, and the reward (0 or 1) of the state after it.
    """
    rng = np.random.default_rng((seed, 1))
    observation, _ = simulator.reset(seed=seed)
    scene = Scene.of(observation, suite)
    actions = operator.actions(PLANS[suite](scene), rng)
    next(actions)
    rows: list[Row] = []
    for _ in range(envs.robomimic.LIMITS[suite]):
        action = actions.send(scene)
        state = simulator.simulator.sim.get_state().flatten()
        after, reward, done, _, _ = simulator.step(action)
        row: dict[str, Any] = {"actions": action.astype(np.float64), "states": state}
        row |= {"rewards": reward + 1.0, "dones": np.int64(done)}
        row |= {f"obs/{key}": value for key, value in robomimic.parted(observation).items()}
        row |= {f"next_obs/{key}": value for key, value in robomimic.parted(after).items()}
        rows.append(row)
        if done:
            break
        observation, scene = after, Scene.of(after, suite)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def model_of(simulator: envs.robomimic.Robosuite) -> str:
    """The simulator's model as robomimic's files hold it, its meshes named from robosuite's folder on."""
    import robosuite

    above = Path(robosuite.__file__).parent.parent
    return simulator.simulator.model.get_xml().replace(f"{above}/", "")


def write(folder: Path, env: str, train: list[Row], validation: list[Row]) -> None:
    """Write all parts as one file of robomimic's, which says which demonstrations are for training."""
    robomimic.write(folder / robomimic.path_of(env), env, train, validation)
