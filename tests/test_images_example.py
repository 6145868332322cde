"""The image examples on generated files: a killed run resumes to the bit, two processes are one; files are checked."""

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


def command(data, out, *options, launch=(), script="train_mnist.py"):
    script = [*launch, str(FOLDER / script)]
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


def write_cifar10(folder: Path) -> torch.Tensor:
    """Six files of twenty records each; returns the records of training."""
    g = torch.Generator().manual_seed(0)
    records = torch.randint(256, (120, 3073), generator=g, dtype=torch.uint8)
    records[:, 0] = torch.arange(120) % 10
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, records.split(20), strict=True):
        (folder / name).write_bytes(part.numpy().tobytes())
    return records[:100]


def test_cifar10_trains_on_features_of_a_masked_autoencoder(tmp_path):
    pytest.importorskip("matplotlib")
    write_cifar10(tmp_path)
    small = ["--width", "32", "--steps", "2"]
    run = command(tmp_path, tmp_path / "run", *small, script="train_cifar10.py")
    subprocess.run(run, env=ENV, check=True, timeout=600)
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    assert state["step"] == 2
    assert state["settings"]["encoder"] == "masked"
    assert all(value.isfinite().all() for value in state["ema"].values())


def test_cifar10_is_red_green_blue_by_rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import image_data

    records = write_cifar10(tmp_path)
    images, labels = image_data.cifar10(tmp_path)
    assert torch.equal(labels, records[:, 0].long())
    assert images.shape == (100, 3, 32, 32)
    assert torch.equal(images[7, 1, 2, 3], records[7, 1 + 1024 + 2 * 32 + 3])
    assert len(image_data.cifar10(tmp_path, "test")[0]) == 20
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match=r"test_batch.bin holds 3072 bytes"):
        image_data.cifar10(tmp_path, "test")
    (tmp_path / "test_batch.bin").unlink()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="not the official archive"):
        image_data.cifar10(tmp_path, "test")


def test_the_masked_autoencoder_restores_what_is_hidden_and_leaves_the_head(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import encoders

    g = torch.Generator().manual_seed(0)
    shade = torch.randint(256, (64, 1, 1, 1), generator=g, dtype=torch.uint8)
    images = shade.expand(64, 1, 28, 28)  # whoever sees one patch knows the others
    torch.manual_seed(0)
    encoder = encoders.Encoder()
    head = encoder.head.weight.clone()
    errors = []
    fit = encoders.fit

    def watched(module, images, loss, steps):
        def noted(x, pick):
            value = loss(x, pick)
            errors.append(value.item())
            return value

        fit(module, images, noted, steps, batch=8)

    monkeypatch.setattr(encoders, "fit", watched)
    encoders.train_masked(encoder, images, 30)
    assert sum(errors[-5:]) < 0.3 * sum(errors[:5])
    assert torch.equal(encoder.head.weight, head)


def test_the_weight_of_the_logits_is_that_of_the_last_map(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from encoders import Encoder

    encoder, x = Encoder(), torch.rand(3, 1, 28, 28)
    maps = encoder.features(x)
    assert torch.equal(maps[-1], encoder(x))
    assert encoder.weights(4.0) == [1.0] * (len(maps) - 1) + [4.0]
    without = encoder.features(x, logits=False)
    assert len(without) == len(encoder.weights(0.0)) == len(maps) - 1


def test_fields_of_the_example_are_read_from_their_names(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from named_fields import field_of

    import wgflow as wg

    assert field_of("energy:.5") == wg.EnergyField(0.5).standardized()
    two = field_of("likelihood:.1,.3")
    assert two == wg.LikelihoodField([wg.Gaussian(0.1), wg.Gaussian(0.3)]).standardized()
    assert field_of("published:.02,.2") == wg.PublishedField((0.02, 0.2))
    with pytest.raises(ValueError, match="positive weights"):
        field_of("nan*energy:1")
    both = wg.EnergyField().standardized() + 2 * wg.PublishedField((0.2,))
    assert field_of("energy:1+2*published:.2") == both.standardized()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("field", "energie:.5"), ("field", "energy"), ("encoder", "clip"), ("logits", "-1.0")],
)
def test_an_unknown_field_or_encoder_is_refused_before_anything_is_trained(flag, value, tmp_path):
    run = command(tmp_path, tmp_path / "run", f"--{flag}", value)
    refused = subprocess.run(run, env=ENV, capture_output=True, text=True)
    assert refused.returncode == 2
    wanted = value if flag == "logits" else repr(value)
    assert f"{flag} is {wanted}; wanted" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import image_data

    for raw, says in ((b"PNG.", "not an idx file"), (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3")):
        (tmp_path / "t10k").write_bytes(gzip.compress(raw))
        with pytest.raises(ValueError, match=says):
            image_data.read_idx(tmp_path / "t10k")
