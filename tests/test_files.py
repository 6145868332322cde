"""Writes follow no link, name their file when they fail, and leave the old file then."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wgflow.trajectory import Trajectory
from wgflow_rl import actions
from wgflow_rl.data import Episodes, hdf5, npz, statistics
from wgflow_rl.training import checkpoint, trained
from wgflow_rl.training.csv_table import Table, read_rows
from wgflow_rl.training.curve import draw_curve
from wgflow_rl.training.runlog import RunLog, check_folder
from wgflow_rl.training.settings import Settings
from wgflow_rl.utils import files
from wgflow_rl.utils.cli import UserError

ROW = {
    "step": 1,
    "phase": "offline",
    "success": 0.5,
    "success_low": 0.1,
    "success_high": 0.9,
    "length": 3,
}


def trajectory(path):
    t = torch.zeros(2)
    Trajectory(torch.zeros(2, 3, 2), t, t, "steps").save(path.with_suffix(".npz"))


def film(path):
    with trained._film(path) as add:
        add(np.zeros((32, 32, 3), np.uint8))


def chunks(path):
    x = np.random.default_rng(0).normal(size=(5, 2))
    actions.draw(x, x, None, path, "title")


def facts(path):
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
    one = np.ones(6, np.float32)
    episodes = Episodes(x, x, x, -one, one, np.arange(6) % 3 == 2, env="walk")
    statistics.draw(statistics.collect([episodes]), path, "title")


def demonstrations(path):
    pytest.importorskip("h5py")
    from wgflow_rl.data.generated import demonstrations

    part = {"actions": np.zeros((3, 7)), "lengths": np.array([3]), "operators": np.array(["clean"])}
    demonstrations.write([path], "lift-mh-low_dim", [part | {"model_file": "x"}], [])


WRITERS = {
    "text": lambda path: files.write_whole(path, "new"),
    "npz": lambda path: npz.write(path, {"x": np.ones(3)}),
    "table": lambda path: Table(path, ("step", "wall_s"), None).close(),
    "curve": lambda path: draw_curve([ROW], path=path),
    "trajectory": trajectory,
    "film.mp4": film,
    "chunks": chunks,
    "facts": facts,
    "demonstrations": demonstrations,
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_follows_a_link(name, tmp_path):
    """Links wait at the destination and at the temporary name that could be guessed."""
    victim, folder = tmp_path / "victim", tmp_path / "received"
    victim.write_text("precious")
    folder.mkdir()
    path = folder / (f"{name}.npz" if name == "trajectory" else name)
    for link in (path, folder / f".{path.name}.tmp", folder / f".{path.stem}.tmp.npz"):
        link.symlink_to(victim)
    WRITERS[name](path)
    assert victim.read_text() == "precious"
    assert path.is_file() and not path.is_symlink()
    assert path.stat().st_size
    assert sum(not entry.is_symlink() for entry in folder.iterdir()) == 1


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "table"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(name, tmp_path, monkeypatch):
    path = tmp_path / (f"{name}.npz" if name == "trajectory" else name)
    path.write_text("good")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](path)
    monkeypatch.undo()
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_where_the_system_names_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'x'}'")):
        files.write_whole(tmp_path / "x", "text")


def test_files_have_the_rights_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        trajectory(tmp_path / "trajectory")
        files.write_whole(tmp_path / "text", "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("name", [".lock", ".sweep.lock", "train.log"])
def test_locks_and_logs_are_not_opened_through_links_or_pipes(name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link; remove it"):
        files.open_to_append(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        files.open_to_append(tmp_path / name)
    assert victim.read_text() == "precious"


def test_a_run_with_a_linked_lock_is_refused(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        RunLog(tmp_path / "run", tensorboard=False)
    assert not victim.exists()


def test_a_linked_config_is_not_written_through_on_resume(tmp_path):
    """What a received folder did: the temporary name of config.json was a link to a file of the user."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    with RunLog(run, tensorboard=False) as log:
        log.config({"seed": 0})
    for name in ("config.json", "train.csv", "eval.csv"):
        (run / f".{name}.tmp").symlink_to(victim)
    with RunLog(run, resume_step=0, tensorboard=False) as log:
        log.config({"seed": 0})
    assert victim.read_text() == "precious"


def test_what_killed_writers_left_is_removed_when_a_run_goes_on(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.config({"seed": 0})
    left = [tmp_path / f".config.json.{'0a' * 8}.tmp", tmp_path / f".x.mp4.{'0a' * 8}.tmp.mp4"]
    kept = [tmp_path / ".notes.tmp", tmp_path / "mine.tmp"]
    for path in left + kept:
        path.touch()
    with RunLog(tmp_path, resume_step=0, tensorboard=False):
        pass
    assert [path.exists() for path in left + kept] == [False, False, True, True]


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_long_names_can_be_written(letter, tmp_path):
    path = tmp_path / (letter * (250 // len(letter.encode())))
    files.write_whole(path, "text")
    assert path.read_text() == "text"


def test_a_user_without_a_home_is_told_of_the_ways_out(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UserError, match="Set HOME, set WGFLOW_DATA"):
        files.expand_user("~/.cache/wgflow")


def test_checkpoints_follow_no_link(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "checkpoints"
    victim.write_text("precious")
    folder.mkdir()
    (folder / ".step-000000000001.safetensors.tmp").symlink_to(victim)
    (folder / "step-000000000001.safetensors").symlink_to(victim)
    checkpoint.save(folder, step=1, tensors={"x": torch.ones(2)}, state={})
    assert victim.read_text() == "precious"
    assert checkpoint.load(folder).step == 1


def hdf5_reader(path):
    pytest.importorskip("h5py")
    with hdf5.opened(path, kind="a data set", install=""):
        pass


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("config.json", lambda path: Settings.read(path.parent)),
        ("config.json", lambda path: check_folder(path.parent, resume=True)),
        ("eval.csv", lambda path: read_rows(path)),
        ("eval.csv", lambda path: check_folder(path.parent, resume=False)),
        ("step-000000000001.safetensors", lambda path: checkpoint.read(path)),
        ("x.npz", lambda path: npz.read(path)),
        ("x.hdf5", hdf5_reader),
    ],
    ids=["settings", "resume", "rows", "start", "checkpoint", "npz", "hdf5"],
)
def test_a_pipe_in_the_place_of_a_file_is_refused(name, call, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, checkpoint.DamagedCheckpoint), match="not a regular file"):
        call(tmp_path / name)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "step-000000000001.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(tmp_path)
