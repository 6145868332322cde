"""The image example on generated files: a killed run resumes to the bit, two processes are one, bad files are named."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "images"
TINY = [
    "--steps",
    "4",
    "--save-every",
    "1",
    "--generated",
    "4",
    "--positives",
    "4",
    "--encoder-steps",
    "2",
]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
pytestmark = pytest.mark.slow


def write_idx(path: Path, values: torch.Tensor) -> None:
    head = bytes([0, 0, 8, values.dim()]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(head + values.numpy().tobytes()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    g = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        images = torch.randint(256, (200, 28, 28), generator=g, dtype=torch.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (torch.arange(200) % 10).byte())
    return folder


def command(data, out, *options, launch=()):
    script = [*launch, str(FOLDER / "train_mnist.py")]
    return [sys.executable, *script, "--data", data, "--out", out, *TINY, *options]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The parameters of an uninterrupted run."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("whole")
    subprocess.run(command(data, out), env=ENV, check=True, timeout=600)
    assert (out / "grid.png").stat().st_size > 1000
    return torch.load(out / "run.pt", weights_only=True)


def test_a_killed_run_resumes_to_the_bit(data, whole, tmp_path):
    running = subprocess.Popen(command(data, tmp_path), env=ENV, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.readline()  # after the first checkpoint
    running.kill()
    running.communicate(timeout=60)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] < 4
    subprocess.run(command(data, tmp_path), env=ENV, check=True, timeout=600)
    again = torch.load(tmp_path / "run.pt", weights_only=True)
    for part in ("net", "ema", "queue"):
        for name, value in whole[part].items():
            assert torch.equal(again[part][name], value), (part, name)
    other = subprocess.run(command(data, tmp_path, "--lr", ".1"), env=ENV, capture_output=True, text=True)  # fmt: skip
    assert other.returncode == 1
    assert "other settings" in other.stderr


def test_two_processes_are_one(data, whole, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(command(data, tmp_path, launch=launch), env=ENV, check=True, timeout=600)
    again = torch.load(tmp_path / "run.pt", weights_only=True)
    for name, value in whole["net"].items():  # Adam's first steps are signs of the gradient
        assert (again["net"][name] - value).abs().mean() < 1e-4, name


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import mnist_data

    for raw, says in ((b"PNG.", "not an idx file"), (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3")):
        (tmp_path / "t10k").write_bytes(gzip.compress(raw))
        with pytest.raises(ValueError, match=says):
            mnist_data.read_idx(tmp_path / "t10k")
