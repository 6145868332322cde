"""Trajectories of OGBench's own oracles: the arm's plan oracle at play, the maze's subgoals followed with noise.

OGBench's package holds the oracles but not the driver; this is one, with the published settings of its play data.
Oracles draw from numpy's global generator: `generated` seeds it around each trajectory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wgflow_rl import envs
from wgflow_rl.data import npz

Row = dict[str, np.ndarray]

VERSION = 1  # raised when a trajectory of the same seed changes: an old cache is then left alone

# Range from which a trajectory draws its probability of stacking cubes, as in OGBench's play data.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


def official_rows(env: str) -> int:
    """Transitions of the official training set."""
    return {"cube-triple": 3_000_000, "cube-quadruple": 5_000_000}.get(
        envs.parse(env).suite, 1_000_000
    )


def files(folder: Path, env: str) -> list[Path]:
    """What `write` makes: X.npz and X-val.npz."""
    stem = envs.parse(env).dataset
    return [folder / f"{stem}.npz", folder / f"{stem}-val.npz"]


def write(folder: Path, env: str, train: list[Row], validation: list[Row]) -> None:
    """Write each split's trajectories end to end."""
    for path, parts in zip(files(folder, env), (train, validation), strict=True):
        npz.write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def prepare(env: str) -> Callable[[int, int], Row]:
    """An environment and its oracle, made once: (seed, transitions) -> one trajectory's arrays in OGBench's layout.

    A trajectory has one row more than transitions: the action of its last row leads nowhere.
    """
    return _maze(env) if envs.parse(env).kind == "navigate" else _play(env)


class _Recorder:
    """The rows of one trajectory, each the state and the action taken in it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, **row: np.ndarray) -> None:
        self.rows.append({name: np.array(value) for name, value in row.items()})

    def arrays(self) -> Row:
        stacked = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
        out = {k: v if v.dtype.kind == "i" else v.astype(np.float32) for k, v in stacked.items()}
        return out | {"terminals": np.arange(len(self.rows)) == len(self.rows) - 1}


def _play(env: str) -> Callable[[int, int], Row]:
    """Play data: the plan oracle with correlated noise moves one object after another, for ever new targets."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    suite = envs.parse(env).suite
    inner, _ = envs.ogbench.build(f"{suite}-v0", terminate_at_goal=False, mode="data_collection")
    noise = {"noise": 0.1, "noise_smoothing": 0.5}
    oracles = {
        "cube": CubePlanOracle(env=inner, **noise),
        # A puzzle has nothing to grasp: there the published data press buttons with a closed gripper.
        "button": ButtonPlanOracle(env=inner, gripper_always_closed="puzzle" in suite, **noise),
        "drawer": DrawerPlanOracle(env=inner, **noise),
        "window": WindowPlanOracle(env=inner, **noise),
    }

    def trajectory(seed: int, rows: int) -> Row:
        inner.action_space.seed(seed)
        ob, info = inner.reset(seed=seed)
        target = {"p_stack": np.random.uniform(*STACKING[suite])} if suite in STACKING else {}
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)
        record = _Recorder()
        for _ in range(rows + 1):
            action = np.clip(oracle.select_action(ob, info), -1, 1)
            following, _, _, _, next_info = inner.step(action)
            state = {"qpos": next_info["prev_qpos"], "qvel": next_info["prev_qvel"]}
            if "prev_button_states" in next_info:
                state["button_states"] = next_info["prev_button_states"]
            record.add(observations=ob, actions=action, **state)
            ob, info = following, next_info
            if oracle.done:
                ob, info = inner.set_new_target(**target)
                oracle = oracles[info["privileged/target_task"]]
                oracle.reset(ob, info)
        return record.arrays()

    return trajectory


def _maze(env: str) -> Callable[[int, int], Row]:
    """Navigate data: towards the oracle's next cell, with action noise; a new random goal whenever one is reached."""
    inner, _ = envs.ogbench.build(f"{envs.parse(env).suite}-v0", terminate_at_goal=False)
    maze: Any = inner.unwrapped
    cells = np.argwhere(maze.maze_map == 0)

    def cell() -> tuple[int, int]:
        return tuple(cells[np.random.randint(len(cells))])

    @functools.cache  # the oracle searches the whole maze at each call, and its answer depends on the cells alone
    def next_cell(start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
        return maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(end))[0]

    def trajectory(seed: int, rows: int) -> Row:
        ob, _ = inner.reset(
            seed=seed, options={"task_info": {"init_ij": cell(), "goal_ij": cell()}}
        )
        record = _Recorder()
        for _ in range(rows + 1):
            here, goal = maze.get_xy(), np.asarray(maze.cur_goal_xy)
            # The oracle leads through the centres of cells; goals lie off theirs by up to a quarter of a cell on each
            # axis. Every cell is crossed with the offset of the goal, so that the data fill the corridors: on centre
            # lines alone, a critic has never seen the walls, and a policy that cuts a corner is caught there.
            start, end = maze.xy_to_ij(here), maze.xy_to_ij(goal)
            offset = goal - np.asarray(maze.ij_to_xy(end))
            aim = goal if start == end else next_cell(start, end) + offset
            direction = aim - here
            direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
            action = np.clip(direction + 0.2 * np.random.randn(2), -1, 1)
            record.add(observations=ob, actions=action, qpos=maze.data.qpos, qvel=maze.data.qvel)
            ob = inner.step(action)[0]
            if np.linalg.norm(maze.get_xy() - maze.cur_goal_xy) < 0.5:
                maze.set_goal(goal_ij=cell())
        return record.arrays()

    return trajectory
