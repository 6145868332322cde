"""Offline data made here by oracles and scripted operators, in the official files' own layout: those drop in.

Data are made in parts of 1,000 transitions: a trajectory of OGBench's, some demonstrations of robomimic's. Each part is
a function of (environment, seed, split, number) alone and is written when it is finished. So the files are the same
bit for bit for any number of workers, and a generation that was stopped goes on where it stood.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from wgflow_rl import envs
from wgflow_rl.data import demonstrations, npz, oracles
from wgflow_rl.utils.cli import UserError

LENGTH = 1000  # transitions in a part, at least
TRAIN, VALIDATION = 0, 1
Row = dict[str, np.ndarray]

# As `data.SOURCES`: each file has VERSION, official_rows(env), files(folder, env), prepare(env), which makes parts, and
# write(folder, env, train, validation), which joins them.
MAKERS: dict[str, ModuleType] = {"ogbench": oracles, "robomimic": demonstrations}


def generate(
    env: str,
    *,
    root: Path,
    rows: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the data of `env` in a folder of their own under `root`, unless they are there; returns that folder.

    Args:
        rows: training transitions, rounded up to whole parts; None: as many as the official set. A tenth as many parts,
            at least one, are added for validation.
        workers: processes; None: one per core.

    Raises:
        ValueError: For rows < 1, seed < 0, a name that `envs.names()` lacks, a source without a generator, or a part
            file that was damaged.
        RuntimeError: If a process is ended from outside, or an extra is missing. Finished parts
            stay, and the next call goes on.
    """
    name = envs.parse(env)
    maker = MAKERS.get(name.source)
    if maker is None:
        raise ValueError(
            f"env is {env!r}, for which no data can be generated: its source {name.source!r} is not in "
            "generated.MAKERS. Name a folder of its data: folder=DIR, --data DIR."
        )
    rows = int(maker.official_rows(env)) if rows is None else rows
    if rows < 1:
        raise ValueError(f"rows is {rows}; wanted at least 1 (a part has {LENGTH})")
    if seed < 0:
        raise ValueError(f"seed is {seed}; wanted 0 or more")
    envs.require(env)
    count = -(-rows // LENGTH)
    folder = root / f"{name.dataset}-rows{count * LENGTH}-seed{seed}-v{maker.VERSION}"
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{folder.name}.lock"):
        if not all(path.exists() for path in maker.files(folder, env)):
            splits = {TRAIN: count, VALIDATION: max(1, count // 10)}
            _fill(env, seed, splits, folder, workers=workers or _cores(), progress=progress)
    return folder


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that dies with its process: of several runs wanting the same data, one makes it, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(
    env: str, seed: int, splits: dict[int, int], folder: Path, *, workers: int, progress: bool
) -> None:
    name = envs.parse(env)
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [
        (env, seed, split, number, parts / f"{split}-{number:06d}.npz")
        for split, size in splits.items()
        for number in range(size)
    ]
    todo = [job for job in jobs if not job[-1].exists()]
    with tqdm(
        total=len(jobs),
        initial=len(jobs) - len(todo),
        unit="part",
        disable=not progress,
        desc=name.dataset,
    ) as bar:
        for _ in _run(todo, workers):
            bar.update()
    train, validation = (
        [_read(job[-1]) for job in jobs if job[2] == split] for split in (TRAIN, VALIDATION)
    )
    MAKERS[name.source].write(folder, env, train, validation)
    shutil.rmtree(parts)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    if len(jobs) <= 1 or workers <= 1:
        yield from map(_make_part, jobs)
        _made.clear()
        return
    # Spawned, not forked: a fork would copy torch's threads and MuJoCo's state in mid-air.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker
    ) as pool:
        futures = [pool.submit(_make_part, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise UserError(
                "a process that generated data was ended from outside, perhaps for memory. Finished parts are "
                f"kept: start again, with fewer workers than {workers} if it happens again."
            ) from error
        finally:
            # After Ctrl-C: the parts in progress are finished, no others are started.
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the first one decides
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that is killed cannot stop its workers: each waits for that end itself.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


_made: dict[str, Callable[[int, int], Row]] = {}  # one environment a process


def _make_part(job: tuple[str, int, int, int, Path]) -> None:
    env, seed, split, number, path = job
    if env not in _made:
        _made.clear()
        _made[env] = MAKERS[envs.parse(env).source].prepare(env)
    own = int(np.random.SeedSequence((seed, split, number)).generate_state(1)[0])
    with envs.numpy_seeded(own):  # oracles and environments draw from numpy's global generator
        npz.write(path, _made[env](own, LENGTH))


def _read(part: Path) -> Row:
    try:
        return npz.read(part)
    except npz.Damaged as error:
        part.unlink()
        raise ValueError(
            f"{error} It is removed now: start again to make that part anew."
        ) from error
