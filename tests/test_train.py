"""A run is a function of its settings: signals and damaged files change no row of it. Errors name their cause."""

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import flags, outcome, refused, saved, tiny_world
from tests.walk import WalkHome
from wgflow_rl import evaluate, train
from wgflow_rl.agents import presets
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.replay import Replay
from wgflow_rl.training import checkpoint, evaluators, loop, state
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.rollout import TRAIN_SEEDS, reset_seed
from wgflow_rl.training.settings import DEFAULT_ENV


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_world(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        tiny_world(patch.setattr)
        start(folder)
    return folder


def start(folder, **changes):
    train.main(flags(folder, **changes))


def resume(folder):
    train.main(["--resume", str(folder)])


# ---- a run -------------------------------------------------------------------------------------------------------


def test_a_run_has_a_row_for_every_interval(whole):
    _, rows = read_rows(whole / "train.csv")
    assert [int(r["step"]) for r in rows] == list(range(5, 81, 5))
    assert [r["phase"] for r in rows] == ["offline"] * 8 + ["online"] * 8
    assert [int(r["step"]) for r in read_rows(whole / "eval.csv")[1]] == [20, 40, 60, 80]
    assert saved(whole) == [77, 80]


@pytest.mark.parametrize("method", presets.METHODS)
def test_every_method_trains_resumes_exactly_and_is_evaluated(
    method, tmp_path, monkeypatch, capsys
):
    short = {
        "method": method,
        "offline_steps": 12,
        "online_steps": 12 if method in presets.ONLINE else 0,
    }
    short |= {"online_start": min(2, short["online_steps"]), "eval_every": 30, "eval_episodes": 1}
    start(tmp_path / "whole", **short)
    last = short["offline_steps"] + short["online_steps"]
    with monkeypatch.context() as patch:
        send(patch, "advance", last - 4, signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            start(tmp_path / "run", **short)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    evaluate.main([str(tmp_path / "run"), "--episodes", "1"])
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["step"] == last


def send(monkeypatch, method, step, *numbers):
    """Send signals to this process during `method` of the training at `step`."""
    owner = loop.InlineEvaluator if method == "submit" else loop.Trainer
    original, left = getattr(owner, method), list(numbers)

    def interrupted(self, *args, **options):
        result = original(self, *args, **options)
        while self.state.step == step and left:
            os.kill(os.getpid(), left.pop())
        return result

    monkeypatch.setattr(owner, method, interrupted)


@pytest.mark.parametrize(
    ("number", "method", "step", "stops"),
    [
        (signal.SIGINT, "advance", 23, 23),
        (signal.SIGTERM, "advance", 61, 61),
        (signal.SIGTERM, "advance", 42, 42),  # before the first online update
        (signal.SIGINT, "submit", 20, 20),
        (signal.SIGINT, "save", 49, 49),
    ],
)
def test_a_signal_leaves_a_checkpoint_of_the_step_in_progress(
    number, method, step, stops, whole, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        send(patch, method, step, number)
        with pytest.raises(SystemExit, match="130"):
            start(folder)
    assert saved(folder)[-1] == stops
    assert f"stopped after step {stops}; continue with --resume {folder}" in capsys.readouterr().out
    resume(folder)
    assert outcome(folder) == outcome(whole)


def test_a_second_interrupt_stops_at_once(tmp_path, monkeypatch, capsys):
    send(monkeypatch, "advance", 9, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        start(tmp_path / "run")
    assert saved(tmp_path / "run") == [7]
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_a_signal_in_the_last_step_changes_nothing(whole, tmp_path, monkeypatch):
    send(monkeypatch, "advance", 80, signal.SIGINT)
    start(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


# ---- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run stopped after step 23, with the checkpoints of 20 (the best evaluation), 21 and 23."""
    with monkeypatch.context() as patch:
        send(patch, "advance", 23, signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            start(tmp_path / "run")
    return tmp_path / "run"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, whole):
    newest = stopped / "checkpoints" / f"step-{23:012d}.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-100] ^= 1
    newest.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="Falling back to the checkpoint before it"):
        resume(stopped)
    assert outcome(stopped) == outcome(whole)


def test_a_run_is_not_written_over(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    message = refused(flags(whole), capsys)
    assert message == (
        f"error: {whole} already holds a run. Continue it with --resume {whole}, or choose another folder with "
        "--run-dir.\n"
    )
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


@pytest.mark.parametrize("flag", ["--resume {}", "--resume={}"])
def test_what_was_never_started_cannot_be_resumed(flag, tmp_path, capsys):
    assert refused(flag.format(tmp_path).split(), capsys) == (
        f"error: {tmp_path} holds no run: there is no config.json in it\n"
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again(stopped, whole):
    shutil.rmtree(stopped / "checkpoints")
    resume(stopped)
    assert outcome(stopped) == outcome(whole)


def test_a_finished_run_resumed_stays_as_it_is(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


# ---- failures ----------------------------------------------------------------------------------------------------


def spoil_batch(monkeypatch, trainer, field):
    sample = Replay.sample

    def spoiled(self, batch, **options):
        drawn = sample(self, batch, **options)
        return drawn._replace(**{field: getattr(drawn, field) * torch.nan})

    monkeypatch.setattr(Replay, "sample", spoiled)


def spoil_loss(monkeypatch, trainer, name):
    agent = type(trainer.state.agent)
    real = getattr(agent, name)
    monkeypatch.setattr(agent, name, lambda *a, **k: (real(*a, **k)[0] * torch.nan, {}))


def spoil_gradient(monkeypatch, trainer, name):
    next(getattr(trainer.state.agent, name).parameters()).register_hook(
        lambda gradient: gradient * torch.nan
    )


def spoil_weights(monkeypatch, trainer, name):
    next(getattr(trainer.state.agent, name).parameters()).data[0] = torch.nan


def inflate_weights(monkeypatch, trainer, name):
    for weight in getattr(trainer.state.agent, name).parameters():
        weight.data.mul_(1e25)  # finite, and no longer so after two layers


@pytest.mark.parametrize(
    ("spoil", "what", "named"),
    [
        (spoil_batch, "returns", "batch.returns is not finite"),
        (spoil_batch, "actions", "batch.actions is not finite"),
        (spoil_loss, "critic_loss", "critic_loss is not finite"),
        (spoil_loss, "actor_loss", "actor_loss is not finite"),
        (spoil_gradient, "policy", "gradient of policy.net.first.weight is not finite"),
        (spoil_weights, "critic", "critic_loss is not finite"),
        (spoil_weights, "policy", "policy.net.first.weight is not finite"),
        (inflate_weights, "policy", "a field of the update is not finite"),
    ],
)
def test_a_nan_stops_the_run_and_leaves_the_last_checkpoint(
    spoil, what, named, tmp_path, monkeypatch, capsys
):
    advance = loop.Trainer.advance

    def poisoned(self):
        if self.state.step == 32:
            spoil(monkeypatch, self, what)
        return advance(self)

    monkeypatch.setattr(loop.Trainer, "advance", poisoned)
    message = refused(flags(tmp_path / "run"), capsys)
    assert message.startswith(
        f"error: {named} at step 33 (offline). Checkpoints are from before it; what usually helps:"
    )
    dump = tmp_path / "run" / f"batch-of-step-{33:012d}.safetensors"
    assert message.endswith(f"The last batch drawn is in {dump}.\n")
    batch = load_file(dump)
    assert batch.keys() == set(Batch._fields)
    assert [f"batch.{k} is not finite" for k, t in batch.items() if not t.isfinite().all()] == [
        name for name in [named] if name.startswith("batch.")
    ]
    last = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert last.step == 28
    assert all(torch.isfinite(t.float()).all() for t in last.tensors.values())


def test_a_divergence_is_named_even_where_no_batch_can_be_written(tmp_path, monkeypatch, capsys):
    def full(path, contents):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    spoil_batch(monkeypatch, None, "returns")
    monkeypatch.setattr(state, "write_whole", full)
    message = refused(flags(tmp_path / "run"), capsys)
    assert message.startswith("error: batch.returns is not finite at step 1 (offline)")
    assert "The batch could not be written ([Errno 28] No space left on device" in message


def test_a_run_ends_although_its_film_cannot_be_rendered(whole, tmp_path, monkeypatch, capsys):
    def without_display(*_, **__):
        raise RuntimeError("no display")

    monkeypatch.setattr(train, "run_episodes", without_display)
    train.main([*flags(tmp_path / "run"), "--film"])
    warning = capsys.readouterr().err
    assert "could not be filmed (RuntimeError: no display)" in warning
    assert f"wgflow_rl.evaluate {tmp_path / 'run'} --video film.mp4" in warning
    assert outcome(tmp_path / "run") == outcome(whole)


def test_an_environment_that_raises_is_named_and_the_run_can_be_resumed(
    whole, tmp_path, monkeypatch, capsys
):
    folder, step = tmp_path / "run", WalkHome.step

    def broken(self, action):
        if self.seeds[-1] == reset_seed(0, TRAIN_SEEDS, 1) and self.time == 1:
            raise RuntimeError("joint limit")
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(WalkHome, "step", broken)
        message = refused(flags(folder), capsys)
    seed = reset_seed(0, TRAIN_SEEDS, 1)
    assert message.startswith(
        f"error: the environment failed in step 2 of episode 1 of {DEFAULT_ENV}, reset(seed={seed}), action ["
    )
    assert (
        "RuntimeError: joint limit. A training run goes on from its last checkpoint with --resume"
        in message
    )
    resume(folder)
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_weights, "policy.net.first.weight is not finite"),
        (inflate_weights, "a field of the diagnostics is not finite"),
    ],
)
def test_a_divergence_that_the_diagnostics_find_first_is_named_too(
    spoil, named, tmp_path, monkeypatch, capsys
):
    advance = loop.Trainer.advance

    def last_words(self):
        log = advance(self)
        if self.state.step == 15:  # a step whose measures are logged, and of no checkpoint
            spoil(monkeypatch, self, "policy")
        return log

    monkeypatch.setattr(loop.Trainer, "advance", last_words)
    message = refused(flags(tmp_path / "run"), capsys)
    assert message.startswith(f"error: {named} at step 15 (offline)")
    assert saved(tmp_path / "run") == [7, 14]


def test_a_collapsed_policy_is_warned_about_once_it_has_settled(tmp_path, monkeypatch, capsys):
    diagnose = state.TrainingState.diagnose
    monkeypatch.setattr(loop, "WARM_UP", 10)
    monkeypatch.setattr(
        state.TrainingState,
        "diagnose",
        lambda self: diagnose(self) | {"spread_ratio": torch.tensor(0.1)},
    )
    start(tmp_path / "run", offline_steps=20, online_steps=0, field="drifting")
    out = capsys.readouterr().out
    assert out.count("the policy has collapsed") == 1
    assert out.startswith("step 10: the policy has collapsed, spread / E|x-y| = 0.10 ")
    assert "--field drifting" in out


def test_a_policy_that_covers_its_data_is_not_warned_about(tmp_path, monkeypatch, capsys):
    diagnose = state.TrainingState.diagnose
    monkeypatch.setattr(loop, "WARM_UP", 0)
    monkeypatch.setattr(
        state.TrainingState,
        "diagnose",
        lambda self: diagnose(self) | {"spread_ratio": torch.tensor(0.5)},
    )
    start(tmp_path / "run", offline_steps=15, online_steps=0)
    assert "collapsed" not in capsys.readouterr().out


# ---- evaluation --------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_and_can_be_evaluated(tmp_path, monkeypatch, capsys):
    real = evaluators.evaluate

    def told(*args, **options):
        result = real(*args, **options)
        result.success[:] = options["first_episode"] == 20  # only the first evaluation succeeds
        return result

    monkeypatch.setattr(evaluators, "evaluate", told)
    start(tmp_path / "run", offline_steps=60, online_steps=0)
    assert saved(tmp_path / "run") == [20, 56, 60]
    capsys.readouterr()
    for asked, step in ((["--checkpoint", "best"], 20), ([], 60)):
        evaluate.main([str(tmp_path / "run"), "--episodes", "1", *asked])
        assert json.loads(capsys.readouterr().out)["step"] == step


def test_a_run_without_an_evaluation_has_no_best_checkpoint(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send(patch, "advance", 9, signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            start(tmp_path / "run")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(tmp_path / "run"), "--checkpoint", "best"])
    assert "no evaluation yet" in capsys.readouterr().err
