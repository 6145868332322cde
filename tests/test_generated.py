"""Generation: files repeat bit for bit, whatever the workers and interruptions."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from wgflow_rl import data, envs
from wgflow_rl.data import generated
from wgflow_rl.data.generated import oracles

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"


@pytest.fixture
def short(monkeypatch):
    """Trajectories of 60 transitions; for generation in this process."""
    monkeypatch.setattr(generated, "LENGTH", 60)


def contents(folder):
    files = sorted(folder.glob("*.npz"))
    return {
        path.name: {k: v.copy() for k, v in np.load(path, allow_pickle=False).items()}
        for path in files
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].keys() == right[name].keys()
        for key in left[name]:
            np.testing.assert_array_equal(
                left[name][key], right[name][key], err_msg=f"{name} {key}"
            )


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    one = generated.generate(MAZE, root=tmp_path / "1", rows=2000, workers=1, progress=False)
    two = generated.generate(MAZE, root=tmp_path / "2", rows=2000, workers=2, progress=False)
    assert_same(contents(one), contents(two))
    for name in contents(one):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("env", [MAZE, ARM])
def test_a_trajectory_does_not_depend_on_those_before_it(env):
    alone = oracles.prepare(env)
    after = oracles.prepare(env)
    with envs.numpy_seeded(1):
        after(1, 40)
    results = []
    for trajectory in (alone, after):
        with envs.numpy_seeded(2):
            results.append(trajectory(2, 40))
    assert_same(*({"": result} for result in results))


def test_splits_trajectories_and_seeds_all_differ(tmp_path, short):
    whole = {}
    for seed in (0, 1):
        folder = generated.generate(
            MAZE, root=tmp_path, rows=120, seed=seed, workers=1, progress=False
        )
        for name, arrays in contents(folder).items():
            for number, start in enumerate(np.flatnonzero(arrays["terminals"]) - 60):
                whole[seed, name, number] = tuple(arrays["observations"][start])
    assert len(whole) == len(set(whole.values())) == 6


@pytest.mark.parametrize("env", ["scene-play-singletask-v0", "puzzle-3x3-play-singletask-v0"])
def test_play_data_can_be_generated_and_labelled(env, tmp_path, short, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    train, validation = data.load(env, rows=1, workers=1, progress=False)
    assert (len(train), len(validation)) == (60, 60)
    assert np.abs(train.actions).max() > 0.1


def test_a_generation_that_stopped_goes_on_where_it_stood(tmp_path, short, monkeypatch):
    made = []
    prepare = oracles.prepare

    def counting(env):
        trajectory = prepare(env)

        def count(seed, rows):
            made.append(seed)
            if len(made) == 3:
                raise KeyboardInterrupt
            return trajectory(seed, rows)

        return count

    monkeypatch.setattr(oracles, "prepare", counting)
    generated._prepare.cache_clear()
    with pytest.raises(KeyboardInterrupt):
        generated.generate(MAZE, root=tmp_path / "a", rows=240, workers=1, progress=False)
    folder = generated.generate(MAZE, root=tmp_path / "a", rows=240, workers=1, progress=False)
    assert len(made) == 6  # four for training and one for validation, of which one was tried twice
    assert sorted(path.suffix for path in folder.iterdir()) == [".npz", ".npz"]
    monkeypatch.setattr(oracles, "prepare", prepare)
    generated._prepare.cache_clear()
    whole = generated.generate(MAZE, root=tmp_path / "b", rows=240, workers=1, progress=False)
    assert_same(contents(folder), contents(whole))


@pytest.mark.parametrize("env", [MAZE, "lift-mh-low_dim"])
def test_what_a_killed_writer_left_is_removed(env, tmp_path, monkeypatch):
    maker = generated.MAKERS[envs.parse(env).source]

    def killed(env, seed, splits, folder, **_):
        for path in maker.files(folder, env):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.0123456789abcdef.tmp").touch()

    monkeypatch.setattr(envs, "require", lambda env: None)
    monkeypatch.setattr(generated, "_generate_parts", killed)
    folder = generated.generate(env, root=tmp_path, rows=240)
    assert list(folder.rglob(".*.tmp"))
    monkeypatch.setattr(generated, "_generate_parts", lambda *_, **__: None)
    generated.generate(env, root=tmp_path, rows=240)
    assert not list(folder.rglob(".*.tmp"))


def test_runs_that_want_the_same_data_make_it_once(tmp_path, short, monkeypatch):
    made = []
    make_part = generated._make_part
    monkeypatch.setattr(generated, "_make_part", lambda job: (made.append(job), make_part(job)))

    def want():
        generated.generate(MAZE, root=tmp_path, rows=180, workers=1, progress=False)

    runs = [threading.Thread(target=want) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(made) == 4


def test_a_damaged_part_is_made_anew(tmp_path, short, monkeypatch):
    monkeypatch.setattr(oracles, "write", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generated.generate(MAZE, root=tmp_path, rows=120, workers=1, progress=False)
    monkeypatch.undo()
    part = next(tmp_path.glob("*/parts/0-000001.npz"))
    part.write_bytes(part.read_bytes()[:100])
    monkeypatch.setattr(generated, "LENGTH", 60)
    with pytest.raises(ValueError, match="has been deleted: repeat the command"):
        generated.generate(MAZE, root=tmp_path, rows=120, workers=1, progress=False)
    folder = generated.generate(MAZE, root=tmp_path, rows=120, workers=1, progress=False)
    assert len(data.load(MAZE, folder=folder)[0]) == 120


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_kill_loses_no_finished_trajectory_and_leaves_no_process(tmp_path):
    asked = f"-m wgflow_rl.data generate {MAZE} --rows 200000 --workers 2".split()
    command = [sys.executable, *asked]
    environment = {"WGFLOW_DATA": str(tmp_path), "PATH": ""}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while len(list(tmp_path.glob("*/parts/[01]-*.npz"))) < 3:
            assert run.poll() is None and time.monotonic() < deadline, "no trajectory was made"
            time.sleep(0.05)
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert len(workers) >= 2
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    finished = sorted(tmp_path.glob("*/parts/[01]-*.npz"))
    assert len(finished) >= 3
    for path in finished:
        assert len(np.load(path, allow_pickle=False)["terminals"]) == 1001


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"env": "maze"}, "Nearest"),
    ],
)
def test_impossible_requests_are_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generated.generate(**({"env": MAZE, "root": tmp_path, "rows": 1} | given))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_maze_is_explored(tmp_path):
    folder = generated.generate(MAZE, root=tmp_path, rows=8000, workers=1, progress=False)
    train = data.load(MAZE, folder=folder)[0]
    cells = {tuple(cell) for cell in np.round(train.observations / 4).astype(int)}
    assert len(cells) >= 24  # of the 26 free ones
    assert train.successes > 0


def test_a_source_without_a_generator_needs_a_folder(monkeypatch, tmp_path):
    monkeypatch.delitem(generated.MAKERS, "ogbench")
    with pytest.raises(ValueError, match="--data DIR"):
        generated.generate(MAZE, root=tmp_path)
