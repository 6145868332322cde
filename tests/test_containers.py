"""Machines without a home folder, with data that cannot be written, and with a renderer that is not there."""

import errno
import os
import textwrap
from pathlib import Path

import pytest

from tests.children import python
from wgflow_rl import data
from wgflow_rl.data import generated
from wgflow_rl.experiments import cluster
from wgflow_rl.training.settings import DEFAULT_ENV
from wgflow_rl.utils.cli import UserError

NUMBER = """
    # A container that runs as a number: no HOME and no entry in the list of users.
    import os, pwd, sys
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "WGFLOW_DATA"):
        os.environ.pop(name, None)
    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")
    pwd.getpwuid = getpwuid
"""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            """
    from wgflow_rl import actions, curve, data, evaluate, export, profile, report, sweep, train
    print(len(data.load(sys.argv[1], folder=sys.argv[2])[0]))
    """,
            "2000\n",
        ),
        (
            """
    from wgflow_rl.data.__main__ import main
    main(["list"])
    """,
            "lift-mh-low_dim",
        ),
        (
            """
    from wgflow_rl.data.__main__ import main
    main(["generate", sys.argv[1], "--rows", "10"])
    """,
            "has none. Set HOME, set WGFLOW_DATA",
        ),
    ],
    ids=["data of its own", "list", "generate"],
)
def test_a_user_that_is_a_number_needs_no_home_or_is_told_what_to_set(code, says, maze_data):
    (folder,) = maze_data.glob("pointmaze-medium-navigate-v0-rows2000-*")
    done = python("-c", textwrap.dedent(NUMBER + code), DEFAULT_ENV, folder)
    assert done.returncode == (2 if "Set HOME" in says else 0), done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_home_leads_to_wgflow_data(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("WGFLOW_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Set WGFLOW_DATA to a folder that can be written to"):
        data.load(DEFAULT_ENV, rows=10, progress=False)


def test_data_on_a_read_only_disk_are_read_without_a_lock(maze_data, monkeypatch):
    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(generated, "open_to_append", read_only)
    before = sorted(maze_data.iterdir())
    train, _ = data.load(DEFAULT_ENV, rows=2000, progress=False)
    assert len(train) == 2000
    with pytest.raises(OSError, match="Read-only file system: generated data cannot be kept"):
        data.load(DEFAULT_ENV, rows=2000, seed=99, progress=False)
    assert sorted(maze_data.iterdir()) == before


@pytest.mark.parametrize("value", ["nonsense", "osmesa"])
@pytest.mark.parametrize("env", [DEFAULT_ENV, "lift-mh-low_dim"])
def test_a_renderer_that_is_not_there_is_named_in_one_line(value, env, tmp_path):
    if env.startswith("lift"):
        pytest.importorskip("robosuite")
    (tmp_path / "OpenGL.py").write_text("raise OSError('libOSMesa.so: not found')")
    code = """
    import sys
    from wgflow_rl import envs
    from wgflow_rl.utils.cli import one_line_errors
    with one_line_errors():
        envs.make(sys.argv[1])
    """
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    done = python("-c", textwrap.dedent(code), env, MUJOCO_GL=value, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: MUJOCO_GL is '{value}', which cannot be used here" in done.stderr
    assert "Unset it if nothing is rendered" in done.stderr


def test_rays_sockets_need_a_short_path(tmp_path):
    pytest.importorskip("ray")
    long = tmp_path / ("x" * 100)
    long.mkdir()
    code = """
    from wgflow_rl.experiments import cluster
    from wgflow_rl.utils.cli import one_line_errors
    with one_line_errors(), cluster.connected(cluster.Machines(cpus=1)):
        pass
    """
    done = python("-c", textwrap.dedent(code), TMPDIR=str(long))
    assert done.returncode == 2, done.stderr
    assert "too long for Ray's sockets; set RAY_TMPDIR to a short one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_too_busy_for_ray_is_named(monkeypatch):
    ray = pytest.importorskip("ray")

    def init(*args, **options):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(UserError, match="too busy.*repeat the command"),
        cluster.connected(cluster.Machines()),
    ):
        pass


def test_a_film_keeps_no_frames(tmp_path, monkeypatch):
    """Frames are encoded as they come: of 300, none is alive when the film is closed, and few on the way."""
    import gc
    import weakref

    import numpy as np

    from wgflow_rl.training import trained

    alive: list[weakref.ref] = []
    most = 0

    class Frame(np.ndarray):
        pass

    with trained._film(Path(tmp_path / "film.mp4")) as add:
        for _ in range(300):
            frame = np.zeros((16, 16, 3), np.uint8).view(Frame)
            alive.append(weakref.ref(frame))
            add(frame)
            del frame
            most = max(most, sum(ref() is not None for ref in alive))
    gc.collect()
    assert most <= 2
    assert all(ref() is None for ref in alive)
