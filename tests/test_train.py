"""A run is a function of its settings: kills, signals and damaged files change no row of it. What fails, says why."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wgflow_rl import data, envs, evaluate, train
from wgflow_rl.agents import methods
from wgflow_rl.data.batch import Batch
from wgflow_rl.data.replay import FIELDS, Replay
from wgflow_rl.training import checkpoint, run, trainer
from wgflow_rl.training.rollout import TRAIN_SEEDS, reset_seed
from wgflow_rl.training.runlog import RunLog
from wgflow_rl.training.settings import DEFAULT_ENV, Settings, from_command_line
from wgflow_rl.training.table import read_rows

ROOT = Path(__file__).resolve().parent.parent
OFFLINE, ONLINE = 40, 40
SMALL = {
    "offline-steps": OFFLINE,
    "online-steps": ONLINE,
    "online-start": 3,
    "data-rows": 2000,
    "threads": 1,
    "hidden": "32 32",
    "batch": 16,
    "eval-every": 20,
    "eval-episodes": 3,
    "checkpoint-every": 7,
    "log-every": 5,
}
EPISODE = 15  # steps: several episodes fit into the online phase


def short_episodes(make=envs.make):
    return lambda *args, **options: gymnasium.wrappers.TimeLimit(make(*args, **options), EPISODE)


@pytest.fixture(scope="session")
def cache(maze_data):
    """Two generated trajectories, where `data.load` looks for them."""
    return maze_data


@pytest.fixture(autouse=True)
def fast(cache, monkeypatch):
    monkeypatch.setattr(envs, "make", short_episodes())


@pytest.fixture(scope="session")
def whole(cache, tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "make", short_episodes())
        start(folder)
    return folder


def flags(folder, **changes):
    asked = (
        SMALL
        | {"run-dir": folder}
        | {name.replace("_", "-"): value for name, value in changes.items()}
    )
    return [word for name, value in asked.items() for word in (f"--{name}", *str(value).split())]


def start(folder, **changes):
    train.main(flags(folder, **changes))


def resume(folder):
    train.main(["--resume", str(folder)])


def saved(folder):
    """Steps of the checkpoints that are there."""
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*.safetensors"))


def contents(folder, name):
    columns, rows = read_rows(folder / name)
    return columns, [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]


def assert_same_run(folder, whole):
    for name in ("train.csv", "eval.csv"):
        assert contents(folder, name) == contents(whole, name)
    one, other = (checkpoint.load(f / "checkpoints") for f in (folder, whole))
    assert (one.step, one.state) == (other.step, other.state)
    rows = [
        {f"ring.{k}": torch.cat([part[k] for part in c.rows]) for k in FIELDS}
        for c in (one, other)
        if c.rows
    ]
    a, b = (c.tensors | (rows.pop(0) if c.rows else {}) for c in (one, other))
    assert a.keys() == b.keys()
    assert [name for name, t in a.items() if not torch.equal(t, b[name])] == []


def refused(args, capsys):
    """What the command line says when it cannot go on."""
    with pytest.raises(SystemExit) as end:
        train.main([str(arg) for arg in args])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err[err.rindex("error:") :]


# ---- the law -----------------------------------------------------------------------------------------------------


def test_a_run_has_a_row_for_every_interval(whole):
    _, rows = contents(whole, "train.csv")
    assert [int(r["step"]) for r in rows] == list(range(5, OFFLINE + ONLINE + 1, 5))
    assert [r["phase"] for r in rows] == ["offline"] * 8 + ["online"] * 8
    assert [int(r["step"]) for r in contents(whole, "eval.csv")[1]] == [20, 40, 60, 80]
    assert saved(whole) == [77, 80]


def test_the_same_settings_give_the_same_run(whole, tmp_path):
    start(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[] if m == "dfp" else pytest.mark.slow) for m in methods.METHODS],
)
def test_every_method_trains_resumes_exactly_and_is_evaluated(
    method, tmp_path, monkeypatch, capsys
):
    short = {
        "method": method,
        "offline_steps": 12,
        "online_steps": 12 if method in methods.ONLINE else 0,
    }
    short |= {"online_start": min(2, short["online_steps"]), "eval_every": 30, "eval_episodes": 1}
    start(tmp_path / "whole", **short)
    last = short["offline_steps"] + short["online_steps"]
    with monkeypatch.context() as patch:
        send(patch, "advance", last - 4, signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            start(tmp_path / "run", **short)
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    evaluate.main([str(tmp_path / "run"), "--episodes", "1"])
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["step"] == last


def die_after(args, step, seconds):
    """Train, and be ended by the kernel after so many seconds of own CPU time behind the checkpoint of `step`."""
    envs.make = short_episodes()
    torch.set_num_threads(1)
    save = checkpoint.save

    def save_and_wind_up(folder, **contents):
        save(folder, **contents)
        if contents["step"] == step:
            signal.setitimer(
                signal.ITIMER_PROF, seconds
            )  # nobody catches its signal: the process ends where it is

    checkpoint.save = save_and_wind_up
    train.main(args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [7, 35, 49, 63], ids=["offline", "near the switch", "online", "late"]
)
def test_a_killed_and_resumed_run_is_the_run_never_killed(step, whole, tmp_path):
    folder, seconds = tmp_path / "run", random.uniform(1e-3, 0.05)
    print(f"killed {seconds} s of CPU time after the checkpoint of step {step}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wgflow_rl.train", "ogbench"])
    child = context.Process(target=die_after, args=(flags(folder), step, seconds))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGPROF
    assert step <= saved(folder)[-1] < OFFLINE + ONLINE
    resume(folder)
    assert_same_run(folder, whole)


def send(monkeypatch, method, step, *numbers):
    """Have signals come while `Trainer.method` is at work at `step`."""
    work = getattr(train.Trainer, method)

    def interrupted(self, *args, **options):
        result = work(self, *args, **options)
        if self.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(train.Trainer, method, interrupted)


@pytest.mark.parametrize(
    ("number", "method", "step", "stops"),
    [
        (signal.SIGINT, "advance", 23, 23),
        (signal.SIGTERM, "advance", 61, 61),
        (signal.SIGTERM, "advance", 42, 42),  # before the first online update
        (signal.SIGINT, "evaluate", 20, 20),
        (signal.SIGINT, "save", 49, 50),  # too late for this step: the next one is saved as well
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
    assert_same_run(folder, whole)


def test_a_second_interrupt_stops_at_once(tmp_path, monkeypatch, capsys):
    send(monkeypatch, "advance", 9, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        start(tmp_path / "run")
    assert saved(tmp_path / "run") == [7]
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_a_signal_in_the_last_step_changes_nothing(whole, tmp_path, monkeypatch):
    send(monkeypatch, "advance", OFFLINE + ONLINE, signal.SIGINT)
    start(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


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
    assert_same_run(stopped, whole)


def test_a_run_is_not_written_over(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    message = refused(flags(whole), capsys)
    assert message == (
        f"error: {whole} already holds a run. Continue it with --resume {whole}, or choose another folder with "
        "--run-dir.\n"
    )
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_two_processes_do_not_share_a_folder(stopped, capsys):
    with RunLog(stopped, resume_step=23, tensorboard=False):
        assert f"another process is writing to {stopped}" in refused(["--resume", stopped], capsys)


@pytest.mark.parametrize("flag", ["--resume {}", "--resume={}"])
def test_what_was_never_started_cannot_be_resumed(flag, tmp_path, capsys):
    assert refused(flag.format(tmp_path).split(), capsys) == (
        f"error: {tmp_path} holds no run: there is no config.json in it\n"
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again(stopped, whole):
    shutil.rmtree(stopped / "checkpoints")
    resume(stopped)
    assert_same_run(stopped, whole)


def copy_data(cache, folder, change):
    """The generated files in another folder, changed."""
    for source in cache.glob("*/*.npz"):
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        change(arrays)
        np.savez(folder / source.name, **arrays)


def test_a_run_does_not_go_on_with_other_data(cache, stopped, tmp_path, capsys):
    copy_data(cache, tmp_path, lambda arrays: np.negative(arrays["actions"], out=arrays["actions"]))
    config = json.loads((stopped / "config.json").read_text())
    config["settings"]["data"] = str(tmp_path)
    (stopped / "config.json").write_text(json.dumps(config))
    assert "the data read now are not those" in refused(["--resume", stopped], capsys)


def test_a_finished_run_resumed_stays_as_it_is(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def spoil_batch(monkeypatch, trainer, field):
    sample = Replay.sample

    def spoiled(self, batch, **options):
        drawn = sample(self, batch, **options)
        return drawn._replace(**{field: getattr(drawn, field) * torch.nan})

    monkeypatch.setattr(Replay, "sample", spoiled)


def spoil_loss(monkeypatch, trainer, name):
    agent = type(trainer.agent)
    real = getattr(agent, name)
    monkeypatch.setattr(agent, name, lambda *a, **k: (real(*a, **k)[0] * torch.nan, {}))


def spoil_gradient(monkeypatch, trainer, name):
    next(trainer.agent.modules[name].parameters()).register_hook(
        lambda gradient: gradient * torch.nan
    )


def spoil_weights(monkeypatch, trainer, name):
    next(trainer.agent.modules[name].parameters()).data[0] = torch.nan


def inflate_weights(monkeypatch, trainer, name):
    for weight in trainer.agent.modules[name].parameters():
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
    advance = train.Trainer.advance

    def poisoned(self):
        if self.step == 32:
            spoil(monkeypatch, self, what)
        return advance(self)

    monkeypatch.setattr(train.Trainer, "advance", poisoned)
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
    monkeypatch.setattr(trainer, "write_whole", full)
    message = refused(flags(tmp_path / "run"), capsys)
    assert message.startswith("error: batch.returns is not finite at step 1 (offline)")
    assert "The batch could not be written ([Errno 28] No space left on device" in message


def test_an_environment_that_raises_is_named_and_the_run_goes_on(
    whole, tmp_path, monkeypatch, capsys
):
    folder, step = tmp_path / "run", gymnasium.wrappers.TimeLimit.step
    taken = []

    def broken(self, action):
        if self._max_episode_steps == EPISODE:  # not the environment's own limit, inside
            taken.append(action)
        if (
            len(taken) == 2 * 3 * EPISODE + 20
        ):  # two evaluations, one episode, and the fifth step of the next
            raise RuntimeError("joint limit")
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(gymnasium.wrappers.TimeLimit, "step", broken)
        message = refused(flags(folder), capsys)
    seed = reset_seed(0, TRAIN_SEEDS, 1)
    assert message.startswith(
        f"error: the environment failed in step 5 of episode 1 of {DEFAULT_ENV}, reset(seed={seed}), action ["
    )
    assert (
        "RuntimeError: joint limit. A training run goes on from its last checkpoint with --resume"
        in message
    )
    resume(folder)
    assert_same_run(folder, whole)


@pytest.mark.parametrize("name", ["observations", "actions"])
def test_data_of_another_environment_is_refused(name, tmp_path, monkeypatch, capsys):
    def wider(*args, load=data.load, **options):
        parts = load(*args, **options)
        columns = {"observations": ("observations", "next_observations"), "actions": ("actions",)}[
            name
        ]
        for episodes in parts:
            for column in columns:
                vars(episodes)[column] = np.repeat(getattr(episodes, column), 2, axis=1)
        return parts

    monkeypatch.setattr(data, "load", wider)
    assert refused(flags(tmp_path / "run"), capsys).startswith(
        f"error: {name} of the data have 4 entries, those of {DEFAULT_ENV} have shape (2,)"
    )


def change_settings(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        where = config["settings"] if name in config["settings"] else config["settings"]["agent"]
        where[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_run_whose_settings_were_changed_does_not_go_on(stopped, capsys):
    change_settings(stopped, gamma=0.9)
    assert refused(["--resume", stopped], capsys).startswith(
        f"error: gamma is 0.9, but the run in {stopped} began with 0.99, so it cannot be continued."
    )


def test_a_setting_that_is_younger_than_the_run_cannot_be_added_to_it(stopped, monkeypatch, capsys):
    read = checkpoint.load

    def older(folder, **how):
        saved = read(folder, **how)
        del saved.state["settings"]["envs"]
        return saved

    monkeypatch.setattr(checkpoint, "load", older)
    change_settings(stopped, envs=2)
    assert refused(["--resume", stopped], capsys).startswith(
        f"error: envs is 2, but the run in {stopped} began with 1, so it cannot be continued."
    )


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys):
    advance = train.Trainer.advance

    def overflow(self):
        log = advance(self)
        if self.step == 14:
            next(self.agent.policy.parameters()).data[0] = torch.inf
        return log

    monkeypatch.setattr(train.Trainer, "advance", overflow)
    message = refused(flags(tmp_path / "run"), capsys)
    assert re.match(r"error: policy\..* is not finite at step 14 \(offline\)", message)
    assert saved(tmp_path / "run") == [7]


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
    advance = train.Trainer.advance

    def last_words(self):
        log = advance(self)
        if self.step == 15:  # a step whose measures are logged, and of no checkpoint
            spoil(monkeypatch, self, "policy")
        return log

    monkeypatch.setattr(train.Trainer, "advance", last_words)
    message = refused(flags(tmp_path / "run"), capsys)
    assert message.startswith(f"error: {named} at step 15 (offline)")
    assert saved(tmp_path / "run") == [7, 14]


def test_a_nan_in_the_data_is_refused_by_file_and_row(cache, tmp_path, capsys):
    def spoil(arrays):
        arrays["observations"][417, 1] = np.nan

    copy_data(cache, tmp_path, spoil)
    message = refused(flags(tmp_path / "run", data=tmp_path), capsys)
    file = tmp_path / "pointmaze-medium-navigate-v0.npz"
    assert message.startswith(f"error: {file}: observations is not finite in row 417")
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_is_named(tmp_path, capsys):
    message = refused(flags(tmp_path / "run", data=tmp_path), capsys)
    assert f"{tmp_path} has no pointmaze-medium-navigate-v0.npz" in message


def test_a_collapsed_policy_is_warned_about_once_it_has_settled(tmp_path, monkeypatch, capsys):
    diagnose = train.Trainer.diagnose
    monkeypatch.setattr(run, "SETTLED", 10)
    monkeypatch.setattr(
        train.Trainer, "diagnose", lambda self: diagnose(self) | {"spread_ratio": torch.tensor(0.1)}
    )
    start(tmp_path / "run", offline_steps=20, online_steps=0, field="eq3")
    out = capsys.readouterr().out
    assert out.count("the policy has collapsed") == 1
    assert out.startswith("step 10: the policy has collapsed, spread / E|x-y| = 0.10 ")
    assert "--field eq3" in out


def test_a_policy_that_covers_its_data_is_not_warned_about(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SETTLED", 0)
    monkeypatch.setattr(run, "COLLAPSED", 0.0)
    start(tmp_path / "run", offline_steps=15, online_steps=0)
    assert "collapsed" not in capsys.readouterr().out


# ---- evaluation --------------------------------------------------------------------------------------------------


def test_evaluation_reports_the_episodes_asked_for(whole, capsys):
    answers = []
    for _ in range(2):
        evaluate.main([str(whole), "--episodes", "11", "--act-samples", "2"])
        answers.append(json.loads(capsys.readouterr().out))
    first, second = answers
    assert first == second
    assert first | {"success": 0, "interval_95": [], "return": 0} == {
        "run": str(whole),
        "step": OFFLINE + ONLINE,
        "episodes": 11,
        "success": 0,
        "interval_95": [],
        "return": 0,
        "length": EPISODE,
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--episodes 0", "--episodes is 0; wanted at least 1"),
        ("--act-samples 0", "--act-samples is 0"),
        ("--video film.mp4 --video-episodes 0", "--video-episodes is 0"),
        ("--video film.mp4 --video-episodes 9", "--video-episodes is 9; wanted at most 8"),
        ("--video film", "--video is film; wanted a name that ends in .mp4"),
    ],
)
def test_an_evaluation_that_cannot_be_done_is_refused(asked, message, whole, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(whole), *asked.split()])
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_best_checkpoint_is_kept_and_can_be_evaluated(tmp_path, monkeypatch, capsys):
    real = trainer.evaluate

    def told(*args, **options):
        result = real(*args, **options)
        result.success[:] = options["first_episode"] == 20  # only the first evaluation succeeds
        return result

    monkeypatch.setattr(trainer, "evaluate", told)
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


def test_a_folder_without_a_run_is_not_evaluated(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(tmp_path)])
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path} holds no run: there is no config.json in it\n"
    )


def test_a_video_changes_no_episode(whole, tmp_path, monkeypatch):
    films = []
    agent, settings, _ = evaluate.load_agent(whole)
    plain = evaluate.run_episodes(agent, settings, 11)
    monkeypatch.setattr(
        envs, "make", lambda name, make=envs.make, **options: make(name)
    )  # no GL library needed
    monkeypatch.setattr(evaluate, "_picture", lambda env: np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(evaluate, "_write_video", lambda path, frames: films.append(frames))
    filmed = evaluate.run_episodes(agent, settings, 11, shown=3, video=tmp_path / "film.mp4")
    assert all(np.array_equal(a, b) for a, b in zip(plain, filmed, strict=True))
    assert [len(frames) for frames in films] == [EPISODE]
    assert films[0][0].shape == (4, 12, 3)


@pytest.mark.slow
def test_a_video_of_the_first_episodes_is_a_readable_mp4(whole, tmp_path):
    import imageio.v2 as imageio

    code = (
        "import sys, test_train as t; t.envs.make = t.short_episodes(); "
        "t.evaluate.main([sys.argv[1], '--episodes', '3', '--video', sys.argv[2], '--video-episodes', '2'])"
    )
    film = tmp_path / "new" / "film.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole), str(film)],
        env={**os.environ, "MUJOCO_GL": "egl", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    if "nothing can be drawn here" in done.stderr:
        assert done.returncode == 2
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"] == str(film)
    reader = imageio.get_reader(film)
    frames, first = reader.count_frames(), reader.get_data(0)
    reader.close()
    assert frames == pytest.approx(EPISODE, abs=1)
    assert first.shape == (320, 640, 3)
    assert first.std() > 5


# ---- the whole, as a person starts it ----------------------------------------------------------------------------


def test_one_command_trains_and_leaves_a_whole_run(cache, tmp_path):
    asked = shlex.split(
        "--offline-steps 60 --online-steps 40 --online-start 10 --data-rows 2000 --hidden 32 32 --batch 16 "
        "--eval-every 50 --eval-episodes 2 --checkpoint-every 50 --log-every 10 --threads 1 --run-dir run"
    )
    done = subprocess.run(
        [sys.executable, "-m", "wgflow_rl.train", *asked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    noise = [
        line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and "step/s" not in line
    ]
    assert [line for line in noise if not re.match(r"\s*\d+%\|", line)] == []
    assert "success 0." in done.stderr or "success 1." in done.stderr

    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "train.csv",
        "eval.csv",
        "curve.png",
        "checkpoints",
        "tensorboard",
    }
    read = Settings.read(folder)
    assert read == dataclasses.replace(from_command_line(asked), route=read.route)
    assert read.route in ("default", "onednn")  # settled, for those who resume it
    assert (folder / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "curve.png").stat().st_size > 5000
    columns, rows = read_rows(folder / "eval.csv")
    assert ",".join(columns) == "step,phase,success,success_low,success_high,return,length,wall_s"
    assert [(row["step"], row["phase"]) for row in rows] == [("50", "offline"), ("100", "online")]
    assert saved(folder) == [50, 100]


def test_a_wrong_name_is_one_line_on_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "wgflow_rl.train", "--env", "cube-single"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: env is 'cube-single', .* Nearest: cube-single-play-singletask.*\n", done.stderr
    )
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
