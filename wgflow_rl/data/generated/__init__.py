"""Parallel, resumable generation of offline data, in the layout of the official files.

Data are made in parts of 1,000 transitions: one trajectory for OGBench, several demonstrations for
robomimic. A part is a function of (environment, seed, split, number) alone and is written when it
is finished. The files are therefore bit-identical for any number of workers, and an interrupted
generation continues with the missing parts.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
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

from wgflow_rl import envs, plugins
from wgflow_rl.data import npz
from wgflow_rl.data.generated import demonstrations, oracles
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.files import open_to_append, remove_temporaries
from wgflow_rl.utils.processes import cores, without_main

LENGTH = 1000  # minimum transitions per part
TRAIN, VALIDATION = 0, 1
Row = dict[str, np.ndarray]

# One module per source, as in `data.SOURCES`. Each provides VERSION, official_rows(env),
# files(folder, env), prepare(env), which returns a function that makes parts, and
# write(files, env, train, validation), which joins them.
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
    """Generate the data set of `env` unless it exists; return its folder.

    Args:
        env: one of `envs.names()`.
        root: parent of the data set's folder.
        rows: training transitions, rounded up to whole parts. None: as many as the official set. A
            tenth as many parts, at least one, are added for validation.
        seed: seed of the data set, at least 0.
        workers: worker processes; None: one per core.
        progress: show a progress bar.

    Raises:
        ValueError: For rows < 1, seed < 0, an unknown environment, a source without a
            generator or a damaged part.
        RuntimeError: If a worker is killed or an extra is not installed. Finished parts are kept
            for the next call.
        OSError: If the data are not there and cannot be written.
    """
    name = envs.parse(env)
    maker = MAKERS.get(name.source)
    if maker is None:
        raise ValueError(
            f"env is {env!r}, for which no data can be generated: its source {name.source!r} is not in "
            "generated.MAKERS. Name a folder of its data: folder=DIR, --data DIR."
        )
    official = int(maker.official_rows(env))
    rows = official if rows is None else rows
    workers = min(cores(), 1024) if workers is None else workers
    if rows < 1:
        raise ValueError(f"rows is {rows}; wanted at least 1 (a part has {LENGTH})")
    if seed < 0:
        raise ValueError(f"seed is {seed}; wanted 0 or more")
    if workers < 1:
        raise ValueError(f"workers is {workers}; wanted at least 1, or None for one per core")
    for what, number, most in (
        ("rows", rows, 10**9),
        ("seed", seed, 2**63 - 1),
        ("workers", workers, 1024),
    ):
        if number > most:
            raise ValueError(f"{what} is {str(number)[:30]}; wanted at most {most:,}")
    envs.require(env)
    count = -(-rows // LENGTH)
    folder = root / f"{name.dataset}-rows{count * LENGTH}-seed{seed}-v{maker.VERSION}"

    def is_complete() -> bool:
        return all(path.exists() for path in maker.files(folder, env))

    if is_complete():  # needs no lock, which a read-only disk could not hold
        return folder
    with _exclusive_lock(root / f".{folder.name}.lock"):
        if not is_complete():
            for place in {path.parent for path in maker.files(folder, env)}:
                remove_temporaries(place)  # of a killed writer
            splits = {TRAIN: count, VALIDATION: max(1, count // 10)}
            _generate_parts(env, seed, splits, folder, workers=workers, progress=progress)
    return folder


@contextlib.contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a file lock, released with its process: concurrent runs wait for the data."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_to_append(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: generated data cannot be kept in {path.parent}. Set WGFLOW_DATA to a folder that can "
            "be written to, or name a folder with the data (--data of a training)",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generate_parts(
    env: str, seed: int, splits: dict[int, int], folder: Path, *, workers: int, progress: bool
) -> None:
    name, parts = envs.parse(env), folder / "parts"
    maker = MAKERS[name.source]
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
    maker.write(maker.files(folder, env), env, train, validation)
    shutil.rmtree(parts)


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    if len(jobs) <= 1 or workers <= 1:
        yield from map(_make_part, jobs)
        _prepare.cache_clear()
        return
    # Spawn rather than fork, which would copy the state of running threads of torch and MuJoCo.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(plugins.imported(),),
    ) as pool:
        with without_main():
            futures = [pool.submit(_make_part, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise UserError(
                "a worker that generated data was killed, perhaps for lack of memory. Finished parts are "
                f"kept: repeat the command, with fewer workers than {workers} if this happens again."
            ) from error
        finally:
            # After Ctrl-C, finish the parts in progress and start no others.
            pool.shutdown(cancel_futures=True)


def _start_worker(modules: tuple[str, ...]) -> None:
    plugins.load(modules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent alone
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed parent cannot stop its workers, so each watches for its end.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@functools.lru_cache(maxsize=1)  # simulators are slow to build, and large
def _prepare(env: str) -> Callable[[int, int], Row]:
    return MAKERS[envs.parse(env).source].prepare(env)


def _make_part(job: tuple[str, int, int, int, Path]) -> None:
    env, seed, split, number, path = job
    make_rows = _prepare(env)
    part_seed = int(np.random.SeedSequence((seed, split, number)).generate_state(1)[0])
    # oracles and environments draw from numpy's global generator
    with envs.numpy_seeded(part_seed):
        npz.write(path, make_rows(part_seed, LENGTH))


def _read(part: Path) -> Row:
    try:
        return npz.read(part)
    except npz.Damaged as error:
        part.unlink()
        raise ValueError(
            f"{error} It has been deleted: repeat the command to generate that part again."
        ) from error
