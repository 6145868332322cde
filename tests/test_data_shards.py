"""Folders of shards: read as one data set, refused by file, and trained on in less memory than they have."""

import dataclasses
import re
import shutil
import tracemalloc

import gymnasium
import numpy as np
import pytest
import torch

from tests.maze_files import MAZE, STEM, change, maze_file
from wgflow_rl import data, envs
from wgflow_rl.agents import presets
from wgflow_rl.data import Episodes, Shards, ogbench
from wgflow_rl.data.episodes import row_bytes
from wgflow_rl.data.replay import Replay
from wgflow_rl.training import checkpoint, loop
from wgflow_rl.training.settings import Machine, Settings

FILES, ROWS = 5, 38  # transitions of a file: two trajectories


@pytest.fixture
def folder(tmp_path):
    for i in range(FILES):
        maze_file(tmp_path / f"{STEM}-{i:03d}.npz", [20, 20], i)
        maze_file(tmp_path / f"{STEM}-{i:03d}-val.npz", [20], 100 + i)
    return tmp_path


def memory_for(rows):
    """The --memory-gb with which so many rows are resident."""
    reading = 40 * (3 * 2 * 4 + 2 + 16) + ROWS * row_bytes((2, 2))
    return (rows * row_bytes((2, 2)) + reading) / 1e9


def test_shards_are_one_data_set(folder):
    shards, validation = data.load(MAZE, folder=folder)
    assert isinstance(shards, Shards) and isinstance(validation, Episodes)
    assert len(shards) == shards.resident == FILES * ROWS
    assert validation.source.endswith("-000-val.npz")
    replay = Replay(shards, capacity=shards.resident)
    replay.sample(1, chunk=1, gamma=0.9, generator=torch.Generator())
    task = ogbench.fix_task(envs.make(MAZE))
    whole = [ogbench.read(train, MAZE, task) for train, _ in ogbench.files(folder, MAZE)]
    both = [np.concatenate([e.observations, e.actions, e.next_observations], 1) for e in whole]
    held = np.concatenate([replay.rows[name].numpy() for name in ("obs", "actions", "next_obs")], 1)
    assert sorted(map(tuple, held)) == sorted(map(tuple, np.concatenate(both)))
    assert [p.source for p in shards.parts()] == [e.source for e in whole]


def test_memory_decides_how_many_are_resident(folder):
    for fitting, resident in ((ROWS, ROWS), (3 * ROWS - 1, 2 * ROWS), (10**6, FILES * ROWS)):
        assert data.load(MAZE, folder=folder, memory_gb=memory_for(fitting))[0].resident == resident
    with pytest.raises(ValueError, match="too little memory"):
        data.load(MAZE, folder=folder, memory_gb=memory_for(ROWS - 1))


def test_labels_in_a_thread_leave_numpys_generator_alone(folder):
    shards, _ = data.load(MAZE, folder=folder)
    with envs.numpy_seeded(0):
        drawn = np.random.rand()  # noqa: NPY002
    with envs.numpy_seeded(0):
        shards.read(1)
        assert np.random.rand() == drawn  # noqa: NPY002


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.with_name(f"{f.stem}-val.npz").unlink(), "has no {stem}-val.npz"),
        (lambda f: f.unlink(), "has no {stem}.npz"),
        (lambda f: f.write_bytes(f.read_bytes()[:-200]), "{stem}.npz cannot be read"),
        (
            lambda f: f.with_name(f"{f.stem}-val.npz").write_bytes(b"PK"),
            "{stem}-val.npz cannot be read",
        ),
        (lambda f: shutil.copy(f, f.with_name(f"{STEM}.npz")), "keep them in separate folders"),
        (
            lambda f: change(f, observations=lambda x: x[:, :1]),
            "{stem}.npz: observations is (40, 1), wanted",
        ),
        (lambda f: change(f, terminals=lambda x: 3 * x), "{stem}.npz: terminals holds [0 3]"),
        (
            lambda f: change(f, terminals=np.zeros_like),
            "{stem}.npz: the last row, 39, does not end",
        ),
    ],
)
def test_a_folder_is_refused_by_file_before_anything_is_trained(folder, spoil, message):
    file = folder / f"{STEM}-003.npz"
    spoil(file)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        data.load(MAZE, folder=folder)
    assert message.format(stem=file.stem) in str(error.value)


def put(row, value):
    return lambda array: np.where(np.arange(len(array))[:, None] == row, value, array).astype(
        array.dtype
    )


def flip_a_byte_of_actions(file):
    arrays = dict(np.load(file, allow_pickle=False))
    content = bytearray(file.read_bytes())
    content[content.index(arrays["actions"].tobytes()) + 77] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change(f, actions=put(7, np.nan)), "actions is not finite in row 7"),
        (lambda f: change(f, qpos=put(9, (8.0, 0.0))), "row 9 is inside a wall"),
        (flip_a_byte_of_actions, "cannot be read (BadZipFile: Bad CRC-32 for file 'actions.npy')"),
        (lambda f: maze_file(f, [10, 10]), "was changed while it was in use"),
    ],
)
def test_contents_are_refused_when_their_turn_comes(folder, spoil, message):
    file = folder / f"{STEM}-003.npz"
    shards, _ = data.load(MAZE, folder=folder)
    shards.read(3)
    spoil(file)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        shards.read(3)
    assert str(file) in str(error.value)


def test_a_checksum_is_of_every_byte_of_every_file(folder):
    checksum = lambda: data.load(MAZE, folder=folder)[0].checksum()
    before = checksum()
    assert checksum() == before
    change(folder / f"{STEM}-004.npz", actions=put(3, 0.123))
    assert checksum() != before


@pytest.fixture
def settings(folder, tmp_path):
    agent, schedule = presets.preset("laptop", "dfp", MAZE)
    small = {
        "offline_steps": 30,
        "online_steps": 8,
        "online_start": 2,
        "eval_every": 100,
        "eval_episodes": 1,
    }
    return Settings(
        dataclasses.replace(agent, batch=16, hidden=(16, 16)),
        dataclasses.replace(schedule, **small, checkpoint_every=4, log_every=5),
        env=MAZE,
        data=str(folder),
        memory_gb=memory_for(2 * ROWS),
        swap_every=3,
        run_dir=str(tmp_path / "run"),
        machine=Machine(threads=1, route="default"),
    ).check()


@pytest.mark.parametrize("stop", [13, 34], ids=["offline", "online"])
def test_a_run_on_shards_resumes_exactly(settings, stop, tmp_path, monkeypatch):
    make = envs.make
    monkeypatch.setattr(
        envs, "make", lambda name, **options: gymnasium.wrappers.TimeLimit(make(name, **options), 5)
    )
    loop.run(dataclasses.replace(settings, run_dir=str(tmp_path / "whole")), progress=False)
    advance = loop.Trainer.advance

    def stopping(self):
        if self.state.step == stop:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            loop.run(settings, progress=False)
    loop.run(settings, resume=True, progress=False)
    whole, again = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "run"))
    assert whole[0] == again[0] == 38
    assert all(torch.equal(t, again[1][name]) for name, t in whole[1].items())
    assert (tmp_path / "run" / "train.csv").read_text().count("\n") > 5


def test_reading_a_shard_takes_no_more_memory_than_was_counted_for_it(tmp_path):
    env, widths = (
        "cube-single-play-singletask-task1-v0",
        {"observations": 28, "actions": 5, "qpos": 21},
    )
    rng = np.random.default_rng(0)
    for end in ("-000", "-000-val"):
        arrays = {
            name: rng.uniform(-1, 1, (10_000, n)).astype(np.float32) for name, n in widths.items()
        }
        ends = np.arange(10_000) % 1000 == 999
        np.savez(tmp_path / f"cube-single-play-v0{end}.npz", **arrays, terminals=ends)
    shards, _ = data.load(env, folder=tmp_path)
    tracemalloc.start()  # numpy's arrays are counted in it
    shards.read(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < shards.files[0].reading
