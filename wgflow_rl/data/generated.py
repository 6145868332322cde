"""Offline data made here with OGBench's own oracles, in OGBench's own file layout: the official files drop in.

Each trajectory is a function of (environment, seed, split, number) alone and is written when it is finished. So the
files are the same bit for bit for any number of workers, and a generation that was stopped goes on where it stood.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wgflow_rl import envs
from wgflow_rl.checkpoint import publish

LENGTH = 1000  # transitions in a trajectory; a file has one row more, whose action leads nowhere
TRAIN, VALIDATION = 0, 1
OFFICIAL_ROWS = {"cube-triple": 3_000_000, "cube-quadruple": 5_000_000}  # 1,000,000 otherwise
# Range from which a trajectory draws its probability of stacking cubes, as in OGBench's play data.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}

Row = dict[str, np.ndarray]


def generate(
    env: str,
    *,
    root: Path,
    rows: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make X.npz and X-val.npz for `env` under `root` unless they are there; returns their folder.

    Args:
        rows: training transitions, rounded up to whole trajectories of 1,000; None: as many as the official set.
            A tenth as many trajectories, at least one, are added for validation.
        workers: processes; None: one a core.
    Raises: ValueError for rows < 1 or an environment without an oracle.
    """
    name = envs.parse(env)
    rows = OFFICIAL_ROWS.get(name.suite, 1_000_000) if rows is None else rows
    if rows < 1:
        raise ValueError(f"rows is {rows}; wanted at least 1 (a trajectory has {LENGTH})")
    count = -(-rows // LENGTH)
    folder = root / f"{name.dataset}-rows{count * LENGTH}-seed{seed}"
    splits = {TRAIN: (folder / f"{name.dataset}.npz", count)}
    splits[VALIDATION] = (folder / f"{name.dataset}-val.npz", max(1, count // 10))
    if all(path.exists() for path, _ in splits.values()):
        return folder

    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [
        (env, seed, split, number, parts / f"{split}-{number:06d}.npz")
        for split, (_, size) in splits.items()
        for number in range(size)
    ]
    todo = [job for job in jobs if not job[-1].exists()]
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(todo), unit="trajectory", disable=not progress, desc=name.dataset
    ) as bar:
        for _ in _run(todo, workers or os.cpu_count() or 1):
            bar.update()
    for split, (path, _) in splits.items():
        _join([job[-1] for job in jobs if job[2] == split], path)
    for job in jobs:
        job[-1].unlink()
    parts.rmdir()
    return folder


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    if len(jobs) <= 1 or workers == 1:
        yield from map(_make_part, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap_unordered(_make_part, jobs)


_made: dict[str, Callable[[int], Row]] = {}  # one environment a process


def _make_part(job: tuple[str, int, int, int, Path]) -> None:
    env, seed, split, number, path = job
    if env not in _made:
        _made.clear()
        _made[env] = _maze(env) if envs.parse(env).kind == "navigate" else _play(env)
    own = int(np.random.SeedSequence((seed, split, number)).generate_state(1)[0])
    with envs.numpy_seeded(own):  # oracles and environments draw from numpy's global generator
        _save(path, _made[env](own))


def _save(path: Path, arrays: Row) -> None:
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _join(parts: list[Path], path: Path) -> None:
    loaded = [np.load(part, allow_pickle=False) for part in parts]
    _save(path, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0].files})
    for part in loaded:
        part.close()


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


def _play(env: str) -> Callable[[int], Row]:
    """Play data: the plan oracle with correlated noise moves one object after another, for ever new targets."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    suite = envs.parse(env).suite
    inner, _ = envs.build(f"{suite}-v0", terminate_at_goal=False, mode="data_collection")
    kinds = {"cube": CubePlanOracle, "button": ButtonPlanOracle, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
    oracles = {task: kind(env=inner, noise=0.1, noise_smoothing=0.5) for task, kind in kinds.items()}

    def trajectory(seed: int) -> Row:
        inner.action_space.seed(seed)
        ob, info = inner.reset(seed=seed)
        target = {"p_stack": np.random.uniform(*STACKING[suite])} if suite in STACKING else {}
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)
        record = _Recorder()
        for _ in range(LENGTH + 1):
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


def _maze(env: str) -> Callable[[int], Row]:
    """Navigate data: towards the oracle's next cell, with action noise; a new random goal whenever one is reached."""
    inner, _ = envs.build(f"{envs.parse(env).suite}-v0", terminate_at_goal=False)
    maze = inner.unwrapped
    cells = np.argwhere(maze.maze_map == 0)

    def cell() -> tuple[int, int]:
        return tuple(cells[np.random.randint(len(cells))])

    def trajectory(seed: int) -> Row:
        ob, _ = inner.reset(seed=seed, options={"task_info": {"init_ij": cell(), "goal_ij": cell()}})
        record = _Recorder()
        for _ in range(LENGTH + 1):
            aim, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
            direction = aim - maze.get_xy()
            direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
            action = np.clip(direction + 0.2 * np.random.randn(2), -1, 1)
            record.add(observations=ob, actions=action, qpos=maze.data.qpos, qvel=maze.data.qvel)
            ob = inner.step(action)[0]
            if np.linalg.norm(maze.get_xy() - maze.cur_goal_xy) < 0.5:
                maze.set_goal(goal_ij=cell())
        return record.arrays()

    return trajectory
