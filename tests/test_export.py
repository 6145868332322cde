"""An exported policy is its agent: the same states and the same draws give the same actions, in another runtime."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs import untrained
from wgflow_rl import export
from wgflow_rl.agents import presets
from wgflow_rl.training.settings import DEFAULT_ENV, from_command_line
from wgflow_rl.utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
OBS, ACTION = 5, 3


def small(method, **changes):
    # with a temperature: a uniform draw too
    agent = presets.laptop(method, presets.ROWS[method], presets.MAZE)
    return dataclasses.replace(agent, hidden=(16, 16), **changes)


def trained(method, **changes):
    """An agent with the statistics of some data, its weights as good as trained."""
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.randn(OBS, generator=generator), 1 + torch.rand(OBS, generator=generator)
    cfg = small(method, **changes)
    return presets.build(cfg, obs_dim=OBS, action_dim=ACTION, seed=2, obs_mean=mean, obs_std=std)


def states(count):
    return 3 * torch.randn(count, OBS, generator=torch.Generator().manual_seed(count))


def description(agent, method):
    obs = states(2)
    actions, drawn = export.reference(agent, obs)
    settings = from_command_line(["--method", method])
    return export.describe(settings, 7, obs, actions, drawn)


@pytest.fixture
def run(tmp_path):
    return untrained(tmp_path / "run")


@pytest.mark.parametrize("method", presets.METHODS)
def test_a_file_of_any_method_acts_as_its_agent(method, tmp_path):
    agent = trained(method)
    file = export.write(
        agent, "torchscript", states(2), description(agent, method), tmp_path / "policy.pt"
    )
    for count in (1, 6):  # a batch of one, and another size than the one that was followed
        actions, drawn = export.reference(agent, states(count), seed=count)
        torch.testing.assert_close(file(states(count), *(draw for _, draw in drawn)), actions)


def test_an_onnx_file_runs_with_onnxruntime_and_numpy_alone(run):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = export.export(export.Args(run).check())
    assert said["largest_difference"] <= export.TOLERANCE
    assert said["inputs"] == {
        "obs": ["batch", 2],
        "normal": ["batch", 16, 10],
        "uniform": ["batch", 16],
    }
    assert not list(run.glob(".*.tmp"))
    script = [
        sys.executable,
        "-W",
        "error",
        str(ROOT / "examples" / "run_policy_onnx.py"),
        said["file"],
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    shown = subprocess.run(
        script, capture_output=True, text=True, check=True, env=env, cwd=run
    ).stdout
    assert f"dfp-ml-energy for {DEFAULT_ENV}, step 12" in shown
    assert shown.count("[") == 1 + 1 + 5  # the heading, and a chunk of five actions


@pytest.mark.parametrize(("opset", "format"), [(18, 8), (21, 10)])
def test_an_operator_set_can_be_chosen(run, opset, format):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    said = export.export(export.Args(run, opset=opset).check())
    model = onnx.load(said["file"])
    assert [entry.version for entry in model.opset_import if not entry.domain] == [opset]
    assert model.ir_version == format
    onnx.checker.check_model(model, full_check=True)
    assert said["largest_difference"] <= export.TOLERANCE


def test_an_operator_set_that_cannot_be_written_is_refused(run):
    pytest.importorskip("onnxscript")
    for args, message in (
        (export.Args(run, opset=17), "--opset is 17; wanted at least 18"),
        (export.Args(run, "torchscript", opset=18), "only --format onnx has operator sets"),
    ):
        with pytest.raises(ValueError, match=message):
            args.check()
    with pytest.raises(UserError, match="could only be written in operator set"):
        export.export(export.Args(run, opset=999).check())
    assert not list(run.glob("*.onnx")) + list(run.glob(".*.onnx*"))


def test_a_file_says_what_it_is(run, tmp_path):
    said = export.export(
        export.Args(
            run, "torchscript", out=tmp_path / "new" / "p.pt", act_samples=4, checkpoint="best"
        ).check()
    )
    held = {"wgflow.json": ""}
    # torch would have us use torch.export; C++ runtimes load TorchScript
    with pytest.deprecated_call():
        torch.jit.load(said["file"], _extra_files=held)
    about = json.loads(held["wgflow.json"])
    assert (about["method"], about["env"], about["seed"], about["step"]) == (
        "dfp-ml-energy",
        DEFAULT_ENV,
        3,
        12,
    )
    assert about["agent"]["act_samples"] == 4
    assert [part["shape"] for part in about["inputs"]] == [
        ["batch", 2],
        ["batch", 4, 10],
        ["batch", 4],
    ]
    assert about["versions"]["torch"] == torch.__version__


def test_one_proposal_needs_no_critic_and_no_choice(tmp_path):
    sizes = {}
    for count in (1, 2):
        agent = trained("dfp", act_samples=count)
        path = tmp_path / f"{count}.pt"
        export.write(agent, "torchscript", states(2), description(agent, "dfp"), path)
        sizes[count] = path.stat().st_size
        assert [kind for kind, _ in export.reference(agent, states(2))[1]] == ["normal", "uniform"][
            :count
        ]
    critic = sum(p.numel() for p in agent.critic.parameters())
    assert sizes[2] - sizes[1] > 4 * critic


@pytest.mark.parametrize("error", [2 * export.TOLERANCE, math.nan, math.inf])
@pytest.mark.parametrize("alone", [False, True], ids=["a batch", "one state alone"])
def test_a_file_that_acts_differently_is_not_written(run, error, alone, monkeypatch, capsys):
    def wrong(policy, inputs, about, path, opset):
        path.write_bytes(b"something")
        return lambda obs, *draws: policy(obs, *draws) + (0.0 if alone and len(obs) > 1 else error)

    monkeypatch.setitem(export.WRITERS, "onnx", wrong)
    with pytest.raises(SystemExit):
        export.main([str(run), "--out", str(run / "mine.onnx")])
    assert "differ from those of the run" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "train.csv", "eval.csv", "checkpoints", ".lock")
    }


class Chooses:
    """Goes left or right, whichever is worth more."""

    def act(self, obs, generator):
        return (obs[:, 0] > obs[:, 1]).float()[:, None, None]


def test_a_tie_is_a_choice_that_rounding_changes():
    def other(obs):
        return 1 - Chooses().act(obs, torch.Generator())

    tie, clear = torch.tensor([[1.0, 1.0 + 1e-7]]), torch.tensor([[1.0, 1.01]])
    assert export.compare(Chooses(), other, tie) == (0.0, 1)
    assert export.compare(Chooses(), other, torch.cat([tie, clear])) == (1.0, 1)


def test_draws_that_cannot_become_inputs_are_named():
    class Shuffles:
        def act(self, obs, generator):
            return obs[torch.randperm(len(obs), generator=generator)]

    with pytest.raises(ValueError, match="draws with torch.randperm"):
        export.reference(Shuffles(), states(2))  # type: ignore[arg-type]


def test_draws_are_named_by_their_kind():
    one = torch.zeros(1)
    assert export.input_names([("normal", one), ("uniform", one), ("normal", one)]) == [
        *("obs", "normal", "uniform", "normal_2")
    ]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["--act-samples", "0"], "wanted at least 1"),
        (["--out", "policy.pt"], "ends in .onnx"),
        (["--format", "torchscript", "--out", "policy.onnx"], "ends in .pt"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, why, capsys):
    with pytest.raises(SystemExit) as end:
        export.main(["nowhere", *asked])
    assert end.value.code == 2
    assert why in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"pip install 'wgflow\[export\]'"):
        export.write_onnx(torch.nn.Identity(), [], {"inputs": []}, tmp_path / "policy.onnx")
