"""What only a GPU can show: the graph that is replayed is the update, and runs go from one device to another.

Skipped without a GPU, and not run on one so far; what can be known without is in tests/test_graphs.py.
"""

import dataclasses
import os
import signal

import pytest
import torch
from test_kills import FLAGS, outcome, small_world
from test_stacked import STACKABLE, A, S, build, weights, works
from torch.utils._pytree import tree_map

from wgflow_rl import train
from wgflow_rl.agents import methods, networks, ops
from wgflow_rl.training import checkpoint, routing
from wgflow_rl.training.graphs import WARM_UP, Captured
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.training.stacked import Stacked
from wgflow_rl.training.trainer import Trainer
from wgflow_rl.training.updates import Plain

DEVICE = "cuda"
EACH = 2 * WARM_UP  # updates of a phase: half of them called, half of them replayed
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="has no CUDA device")


def learners(method, count):
    cfg, sizes = build(method).cfg, {"obs_dim": S, "action_dim": A}
    scale = {"obs_mean": torch.zeros(S), "obs_std": torch.ones(S)}
    return [methods.build(cfg, seed=seed, device=DEVICE, **sizes, **scale) for seed in range(count)]


def learn(update, agents, stacked):
    """Losses of updates in both phases, the learning rate falling in the second; then all that was learned."""
    lost = []
    for i in range(2 * EACH):
        each, together = works(agents, i)
        inputs, online = (
            tree_map(lambda t: t.to(DEVICE), together if stacked else each[0]),
            i >= EACH,
        )
        if online:
            ops.anneal_(update.optimiser, 3e-4, 0.1, i / EACH - 1)
        result = update(*inputs, online=online)
        assert result.finite.all()
        lost.append({name: value.clone() for name, value in result.log.items()})
    return lost, [weights(agent) for agent in agents]


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", STACKABLE)
def test_a_replayed_update_is_the_update(method):
    plain, captured = learners(method, 1), learners(method, 1)
    same(learn(Captured(Plain(captured[0])), captured, False), learn(Plain(plain[0]), plain, False))


@pytest.mark.parametrize("method", ["dfp", "mvp-topk", "cac", "fql"])
def test_a_replayed_stack_is_the_stack(method):
    plain, captured = Stacked(learners(method, 3)), Stacked(learners(method, 3))
    same(learn(Captured(captured), captured.agents, True), learn(plain, plain.agents, True))


def test_a_replayed_update_in_mixed_precision_is_that_update():
    plain, captured = learners("dfp", 1), learners("dfp", 1)
    with routing.applied("default", precision="mixed", device=DEVICE), networks.reduced():
        same(
            learn(Captured(Plain(captured[0])), captured, False),
            learn(Plain(plain[0]), plain, False),
        )


@pytest.fixture
def command(monkeypatch):
    """command(folder, *flags, stop=n): train, or go on; n: asked to stop in that step."""
    small_world(monkeypatch.setattr)
    draw = Trainer.draw

    def command(folder, *flags, stop=0):
        def drawn(trainer):
            if trainer.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(trainer)

        monkeypatch.setattr(Trainer, "draw", drawn)
        resume = (folder / "config.json").exists()
        begun = ["--resume", str(folder)] if resume else [*FLAGS.split(), "--run-dir", str(folder)]
        settings = (Settings.resumed if resume else from_command_line)([*begun, *flags])
        try:
            train.run(settings, resume=resume, progress=False)
        except SystemExit:
            assert stop
        else:
            assert not stop

    return command


def test_a_run_stopped_on_a_gpu_goes_on_with_the_numbers_of_the_one_that_was_not(command, tmp_path):
    device = ("--device", DEVICE, "--noise-on", "device")
    command(tmp_path / "whole", *device)
    command(tmp_path / "stopped", *device, stop=9)
    with pytest.raises(ValueError, match="drew its noise on a device of another kind"):
        command(tmp_path / "stopped", "--device", "cpu")
    command(tmp_path / "stopped")
    learned = [
        checkpoint.load(tmp_path / name / "checkpoints").tensors for name in ("whole", "stopped")
    ]
    same(*learned)


@pytest.mark.parametrize("devices", [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_run_goes_on_on_another_device(devices, command, tmp_path):
    command(tmp_path, "--device", devices[0], stop=9)
    command(tmp_path, "--device", devices[1])
    (_, (_, evaluated)), last, *_ = outcome(tmp_path)
    assert last == 12
    assert [int(row["step"]) for row in evaluated] == [4, 8, 12]
    assert Settings.read(tmp_path) == dataclasses.replace(
        Settings.read(tmp_path), device=devices[1]
    )
