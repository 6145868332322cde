"""HDF5 files that show other files of the machine, or promise more than they hold, are refused before they are read."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from wgflow_rl.data import hdf5, npz
from wgflow_rl.utils import memory
from wgflow_rl.utils.cli import UserError

h5py = pytest.importorskip("h5py")
SECRET = b"root:x:0:0:root:/root:/bin/sh\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "passwd").write_bytes(SECRET)
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["x"] = np.frombuffer(SECRET, np.uint8)
    return tmp_path / "data.hdf5"


def read(path, name="data/demo_0/x"):
    with hdf5.opened(path, kind="a data set", install="pip install h5py") as file:
        return file.read(name)


def external_storage(file, folder):
    size = len(SECRET)
    file.create_dataset(
        "data/demo_0/x", (size,), "u1", external=[(str(folder / "passwd"), 0, size)]
    )


def external_link(file, folder):
    file["data/demo_0/x"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/x")


def external_group(file, folder):
    with h5py.File(folder / "other.hdf5", "a") as other:
        other.create_group("demo_0")["x"] = np.ones(3)
    file["data/demo_0"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/demo_0")


def soft_link(file, folder):
    external_link(file, folder)
    file["data/demo_0/y"] = h5py.SoftLink("/data/demo_0/x")
    file.move("data/demo_0/x", "elsewhere")
    file.move("data/demo_0/y", "data/demo_0/x")


def virtual(file, folder):
    layout = h5py.VirtualLayout((len(SECRET),), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "x", (len(SECRET),))
    file.create_virtual_dataset("data/demo_0/x", layout)


@pytest.mark.parametrize(
    "way", [external_storage, external_link, external_group, soft_link, virtual]
)
def test_other_files_are_not_read_as_data(path, way):
    with h5py.File(path, "w") as file:
        way(file, path.parent)
    with pytest.raises(ValueError, match="not followed|stored in other files") as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_a_promise_of_many_bytes_is_refused_before_memory_is_reserved(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("data/demo_0/x", (10**12, 3), "f4", chunks=(1000, 3))
        whole = file.create_dataset("data/demo_0/y", (10**7,), "f4", chunks=(100,))
        whole[:100] = 1.0
        file["data/demo_0/text"] = np.array(["a", "b"], dtype=h5py.string_dtype())
    assert path.stat().st_size < 10**6
    for name in ("x", "y", "text"):
        with pytest.raises(ValueError, match="truncated or made up"):
            read(path, f"data/demo_0/{name}")


def test_one_array_under_many_names_is_refused(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(10_000)
        file["b"] = file["a"]
    with hdf5.opened(path, kind="a data set", install="") as file:
        file.read("a")
        with pytest.raises(ValueError, match="made up"):
            file.read("b")


def test_compressed_arrays_are_read(path):
    x = np.zeros((1000, 50), np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("data/demo_0/x", data=x, compression="gzip")
        file["data/demo_0/none"] = np.zeros((0, 3))
    np.testing.assert_array_equal(read(path), x)
    assert read(path, "data/demo_0/none").shape == (0, 3)


def test_an_array_larger_than_the_memory_is_no_damage(path, monkeypatch, tmp_path):
    x = np.random.default_rng(0).normal(size=1000)
    with h5py.File(path, "w") as file:
        file["data/demo_0/x"] = x
    npz.write(tmp_path / "x.npz", {"x": x})
    monkeypatch.setattr(memory, "machine_memory", lambda: 1000)
    for call in (lambda: read(path), lambda: npz.read(tmp_path / "x.npz")):
        with pytest.raises(UserError, match="needs 0.0 GB of memory"):
            call()


def test_a_locked_file_is_not_called_damaged(path):
    """HDF5 locks a file while another program writes it."""
    with h5py.File(path, "w") as file:
        file["data/demo_0/x"] = np.ones(3)
    code = (
        "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "locked\n"
        with pytest.raises(OSError, match="another program writes it") as refused:
            read(path)
        writer.communicate("\n")
    assert str(path) in str(refused.value)
    assert "delete" not in str(refused.value).lower()
    np.testing.assert_array_equal(read(path), np.ones(3))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_an_unreadable_file_is_not_called_damaged(kind):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        path = Path(folder) / f"x.{kind}"
        if kind == "hdf5":
            with h5py.File(path, "w") as file:
                file["data/demo_0/x"] = np.ones(3)
        else:
            npz.write(path, {"x": np.ones(3)})
        path.chmod(0)
        os.seteuid(12345)
        try:
            with pytest.raises(PermissionError) as refused:
                read(path) if kind == "hdf5" else npz.read(path)
        finally:
            os.seteuid(0)
    assert str(path) in str(refused.value)
    assert "damaged" not in str(refused.value)
