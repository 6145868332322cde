"""Training, evaluation and filming in a real simulator, as a user starts them; data that do not fit are refused."""

import contextlib
import dataclasses
import json
import multiprocessing
import random
import re
import shlex
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests.children import python
from tests.runs import flags, outcome, refused, saved
from wgflow_rl import data, envs, evaluate, train
from wgflow_rl.training import checkpoint, trained
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.settings import DEFAULT_ENV, Settings, from_command_line

ROOT = Path(__file__).resolve().parent.parent
OFFLINE, ONLINE = 40, 40
EPISODE = 15  # steps: several episodes fit into the online phase


def short_episodes(make=envs.make):
    return lambda *args, **options: gymnasium.wrappers.TimeLimit(make(*args, **options), EPISODE)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Two generated trajectories, where `data.load` looks for them."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WGFLOW_DATA", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        data.load(DEFAULT_ENV, rows=2000, workers=1, progress=False)
        yield root


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


def start(folder, **changes):
    train.main(flags(folder, **changes))


def resume(folder):
    train.main(["--resume", str(folder)])


def die_after(args, step, seconds):
    """Train, and be ended by the kernel after so many seconds of own CPU time behind the checkpoint of `step`."""
    envs.make = short_episodes()
    torch.set_num_threads(1)
    save = checkpoint.save

    def save_and_wind_up(folder, **contents):
        save(folder, **contents)
        if contents["step"] == step:
            # nobody catches its signal: the process ends where it is
            signal.setitimer(signal.ITIMER_PROF, seconds)

    checkpoint.save = save_and_wind_up
    train.main(args)


@pytest.mark.slow
def test_a_process_evaluates_as_training_would(whole, tmp_path, monkeypatch):
    """Real simulators, with their full episodes, in this process and in another one."""
    monkeypatch.undo()
    short = {"offline_steps": 8, "online_steps": 4, "eval_every": 5, "eval_episodes": 1}
    for name, mode in (("inline", []), ("async", ["--async-eval"])):
        train.main([*flags(tmp_path / name, **short), *mode])
    assert outcome(tmp_path / "async") == outcome(tmp_path / "inline")


@pytest.mark.parametrize(
    "step", [7, pytest.param(35, marks=pytest.mark.slow), 49], ids=["offline", "switch", "online"]
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
    assert outcome(folder) == outcome(whole)


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


def test_a_video_changes_no_episode(whole, tmp_path, monkeypatch):
    films = []
    agent, settings, _ = trained.load_agent(whole)
    plain = trained.run_episodes(agent, settings, 11)
    # no GL library needed
    monkeypatch.setattr(envs, "make", lambda name, make=envs.make, **options: make(name))
    monkeypatch.setattr(trained, "_render", lambda env: np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(trained, "_film", lambda path: contextlib.nullcontext(films.append))
    filmed = trained.run_episodes(agent, settings, 11, shown=3, video=tmp_path / "film.mp4")
    assert all(np.array_equal(a, b) for a, b in zip(plain, filmed, strict=True))
    assert len(films) == EPISODE
    assert films[0].shape == (4, 12, 3)


@pytest.mark.slow
def test_a_video_of_the_first_episodes_is_a_readable_mp4(whole, tmp_path):
    import imageio.v2 as imageio

    code = (
        "import sys, test_end_to_end as t; t.envs.make = t.short_episodes(); "
        "t.evaluate.main([sys.argv[1], '--episodes', '3', '--video', sys.argv[2], '--video-episodes', '2'])"
    )
    film = tmp_path / "new" / "film.mp4"
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = python("-c", code, whole, film, MUJOCO_GL="egl", PYTHONPATH=paths)
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


# ---- the command ------------------------------------------------------------------------------------------------


def test_one_command_trains_and_leaves_a_whole_run(cache, tmp_path):
    asked = shlex.split(
        "--offline-steps 60 --online-steps 40 --online-start 10 --data-rows 2000 --hidden 32 32 --batch 16 "
        "--eval-every 50 --eval-episodes 2 --checkpoint-every 50 --log-every 10 --threads 1 --run-dir run"
    )
    done = python("-m", "wgflow_rl.train", *asked, cwd=tmp_path)
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
    assert read == dataclasses.replace(from_command_line(asked), machine=read.machine)
    assert read.machine.threads == 1
    assert read.machine.route == "default"
    assert (folder / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "curve.png").stat().st_size > 5000
    columns, rows = read_rows(folder / "eval.csv")
    assert ",".join(columns) == "step,phase,success,success_low,success_high,return,length,wall_s"
    assert [(row["step"], row["phase"]) for row in rows] == [("50", "offline"), ("100", "online")]
    assert saved(folder) == [50, 100]
