"""Trajectories of OGBench's scripted oracles: play data of the arm, navigation data of the mazes.

OGBench's package has the oracles but not the scripts that collect data; this module collects with
the published settings. Oracles draw from numpy's global generator, which `generated` seeds per
trajectory.
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

VERSION = 1  # part of the cache's folder name: increase it when the trajectory of a seed changes

# Range of the probability of stacking cubes, drawn per trajectory, as in OGBench's play data.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


def official_rows(env: str) -> int:
    """Number of transitions in the official training set.

    Raises:
        ValueError: For ants and humanoids, which have no oracle.
    """
    suite = envs.parse(env).suite
    if suite.startswith(envs.ogbench.WALKERS):
        raise ValueError(
            f"no data can be generated for {env}: OGBench's come from trained policies. Name a folder of them, "
            f"--data DIR; python -m wgflow_rl.data download {env} fetches them."
        )
    return {"cube-triple": 3_000_000, "cube-quadruple": 5_000_000}.get(suite, 1_000_000)


def files(folder: Path, env: str) -> list[Path]:
    """Paths that `write` creates: X.npz and X-val.npz."""
    stem = envs.parse(env).dataset
    return [folder / f"{stem}.npz", folder / f"{stem}-val.npz"]


def write(paths: list[Path], env: str, train: list[Row], validation: list[Row]) -> None:
    """Write the concatenated trajectories of each split to its file in `paths`."""
    for path, parts in zip(paths, (train, validation), strict=True):
        npz.write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def prepare(env: str) -> Callable[[int, int], Row]:
    """Build an environment and its oracle; return a function that records a trajectory.

    The function maps (seed, transitions) to arrays in OGBench's layout, with one row more than
    transitions: the last action has no successor.
    """
    return _maze(env) if envs.parse(env).kind == "navigate" else _play(env)


class _Recorder:
    """Accumulates the rows of one trajectory: states and the actions taken in them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, **row: np.ndarray) -> None:
        self.rows.append({name: np.array(value) for name, value in row.items()})

    def arrays(self) -> Row:
        stacked = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
        out = {k: v if v.dtype.kind == "i" else v.astype(np.float32) for k, v in stacked.items()}
        return out | {"terminals": np.arange(len(self.rows)) == len(self.rows) - 1}


def _play(env: str) -> Callable[[int, int], Row]:
    """Play data: the plan oracle with correlated noise, one random target after another."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    suite = envs.parse(env).suite
    inner, _ = envs.ogbench.build(f"{suite}-v0", terminate_at_goal=False, mode="data_collection")
    noise = {"noise": 0.1, "noise_smoothing": 0.5}
    oracles = {
        "cube": CubePlanOracle(env=inner, **noise),
        # As in the published data: the gripper stays closed in puzzles, which have nothing to
        # grasp.
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
            next_ob, _, _, _, next_info = inner.step(action)
            state = {"qpos": next_info["prev_qpos"], "qvel": next_info["prev_qvel"]}
            if "prev_button_states" in next_info:
                state["button_states"] = next_info["prev_button_states"]
            record.add(observations=ob, actions=action, **state)
            ob, info = next_ob, next_info
            if oracle.done:
                ob, info = inner.set_new_target(**target)
                oracle = oracles[info["privileged/target_task"]]
                oracle.reset(ob, info)
        return record.arrays()

    return trajectory


def _maze(env: str) -> Callable[[int, int], Row]:
    """Navigation data: the oracle's path with action noise, one random goal after another."""
    inner, _ = envs.ogbench.build(f"{envs.parse(env).suite}-v0", terminate_at_goal=False)
    maze: Any = inner.unwrapped
    cells = np.argwhere(maze.maze_map == 0)

    def cell() -> tuple[int, int]:
        return tuple(cells[np.random.randint(len(cells))])

    @functools.cache  # a search of the whole maze whose result depends on the cells alone
    def next_cell(start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
        return maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(end))[0]

    def trajectory(seed: int, rows: int) -> Row:
        ob, _ = inner.reset(
            seed=seed, options={"task_info": {"init_ij": cell(), "goal_ij": cell()}}
        )
        record = _Recorder()
        for _ in range(rows + 1):
            position, goal = maze.get_xy(), np.asarray(maze.cur_goal_xy)
            # The oracle returns centres of cells; a goal is up to a quarter of a cell off its
            # centre on each axis. Every cell is crossed with the goal's offset, so that the data
            # cover the width of the corridors: with centre lines alone the critic never sees walls,
            # and a policy that cuts a corner gets stuck there.
            start, end = maze.xy_to_ij(position), maze.xy_to_ij(goal)
            offset = goal - np.asarray(maze.ij_to_xy(end))
            waypoint = goal if start == end else next_cell(start, end) + offset
            direction = waypoint - position
            direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
            action = np.clip(direction + 0.2 * np.random.randn(2), -1, 1)
            record.add(observations=ob, actions=action, qpos=maze.data.qpos, qvel=maze.data.qvel)
            ob = inner.step(action)[0]
            if np.linalg.norm(maze.get_xy() - maze.cur_goal_xy) < 0.5:
                maze.set_goal(goal_ij=cell())
        return record.arrays()

    return trajectory
