"""On a GPU an update is that of the CPU to rounding, and a run may stop on one device and resume on another."""

import pytest
import torch

from tests.runs import outcome, resume, start, stop_after, tiny_world
from tests.small_agents import build, make_batch, noise_for
from wgflow_rl.data.batch import Batch
from wgflow_rl.training import checkpoint
from wgflow_rl.training.updates import update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="has no CUDA device")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_world(monkeypatch.setattr)


def stop_at(folder, step, *flags):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(SystemExit, match="130"):
            start(folder, *flags)


@pytest.mark.parametrize("method", ["dfp", "dfp-published", "dfp-ml-energy", "mvp-topk", "fql"])
@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_an_update_is_that_of_the_cpu(method, online):
    logs = []
    for device in ("cpu", "cuda"):
        agent = build(method, chunk=2).to(device)
        batch = Batch(*(t.to(device) for t in make_batch(2)))
        log = update(agent, batch, noise_for(agent), online=online)
        logs.append({name: value.cpu() for name, value in log.items()})
    torch.testing.assert_close(*logs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids="-".join)
def test_a_run_resumes_on_another_device(devices, tmp_path):
    first, then = devices
    stop_at(tmp_path, 9, "--device", first)
    resume(tmp_path, "--device", then)
    (_, (_, evaluated)), last, *_ = outcome(tmp_path)
    assert last == 12
    assert [int(row["step"]) for row in evaluated] == [4, 8, 12]


def test_a_resumed_run_with_noise_of_the_gpu_is_the_run_without_a_stop(tmp_path):
    device = ("--device", "cuda", "--noise-on", "device")
    start(tmp_path / "whole", *device)
    stop_at(tmp_path / "stopped", 9, *device)
    with pytest.raises(ValueError, match="drew its noise on a device of another kind"):
        resume(tmp_path / "stopped", "--device", "cpu")
    resume(tmp_path / "stopped")
    whole, stopped = (
        checkpoint.load(tmp_path / name / "checkpoints").tensors for name in ("whole", "stopped")
    )
    torch.testing.assert_close(stopped, whole, rtol=1e-4, atol=1e-5)
