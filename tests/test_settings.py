"""A run's settings are what the flags say, what config.json says, and what can be used; everything else is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wgflow_rl.agents import presets
from wgflow_rl.training.settings import DEFAULT_ENV, Machine, Settings, as_json, from_command_line
from wgflow_rl.utils.cli import UserError, one_line_errors

ARM = "cube-single-play-singletask-task2-v0"


def write(folder, settings):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"settings": as_json(settings)}))
    return folder


def test_no_flag_is_the_default_run():
    settings = from_command_line([])
    assert (settings.env, settings.preset, settings.method) == (
        DEFAULT_ENV,
        "laptop",
        "dfp-ml-energy",
    )
    assert (settings.agent, settings.schedule) == presets.preset(
        "laptop", "dfp-ml-energy", DEFAULT_ENV
    )
    assert str(settings.folder) == f"runs/dfp-ml-energy-{DEFAULT_ENV}-s0"


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("env", [DEFAULT_ENV, ARM])
def test_preset_and_environment_choose_every_number_that_is_left_alone(preset, env):
    settings = from_command_line(
        ["--env", env, f"--preset={preset}", "--lr", "0.5", "--eval-every", "9"]
    )
    agent, schedule = presets.preset(preset, "dfp-ml-energy", env)
    assert settings.agent == dataclasses.replace(agent, lr=0.5)
    assert settings.schedule == dataclasses.replace(schedule, eval_every=9)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--preset", "paper", "--seed", "3", "--run-dir", "there", "--threads", "1"],
        ["--env", ARM, "--hidden", "8", "9", "--field", "published:0.02,0.05", "--data", "here"],
    ],
    ids=["default", "paper", "arm"],
)
def test_config_json_gives_the_same_settings_back(flags, tmp_path):
    settings = from_command_line(flags)
    assert Settings.read(write(tmp_path, settings)) == settings


def test_a_resumed_run_keeps_its_settings_and_may_change_the_machine(tmp_path):
    settings = from_command_line(["--lr", "0.25", "--threads", "2", "--route", "onednn"])
    resume = ["--resume", str(write(tmp_path, settings))]
    assert Settings.resumed(resume) == dataclasses.replace(settings, run_dir=str(tmp_path))
    resumed = Settings.resumed([*resume, "--threads", "1", "--async-eval", "--env-timeout", "9"])
    machine = Machine(threads=1, route="onednn", async_eval=True, env_timeout=9.0)
    assert resumed == dataclasses.replace(settings, run_dir=str(tmp_path), machine=machine)


def test_more_threads_than_cores_are_warned_about(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    try:
        with pytest.warns(RuntimeWarning, match="--threads is 2, but the number .* is 1"):
            Machine(threads=2, route="default").resolved()
    finally:
        torch.set_num_threads(before)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    """A shell does not expand it after `--run-dir=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = from_command_line(["--run-dir=~/run", "--data=~/data"])
    assert settings.folder == tmp_path / "run"
    assert settings.data == str(tmp_path / "data")
    write(settings.folder, settings)
    assert Settings.resumed(["--resume=~/run"]).folder == tmp_path / "run"


def test_a_run_finds_its_data_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "run", from_command_line(["--data", "data"]))
    monkeypatch.chdir("/")
    assert Settings.resumed(["--resume", str(folder)]).data == str(tmp_path / "data")


@pytest.mark.parametrize("more", [["--lr", "1"], ["--seed", "1"], ["--res", "x"], ["extra"]])
def test_a_resumed_run_takes_no_other_flag(more, tmp_path, capsys):
    folder = write(tmp_path, from_command_line([]))
    with pytest.raises(SystemExit, match="2"):
        Settings.resumed(["--resume", str(folder), *more])
    assert more[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"settings": []}',
        '{"settings": {"agent": "x", "schedule": {}}}',
        '{"settings": {"agent": {"unknown": 1}, "schedule": {}}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not the config.json of a run"):
        Settings.read(tmp_path)


DEFAULT = json.dumps(as_json(from_command_line([])))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=3,
)


@given(st.data(), JSON)
def test_a_config_with_any_entry_changed_is_used_as_it_is_or_refused(tmp_path_factory, data, value):
    settings = json.loads(DEFAULT)
    part = data.draw(
        st.sampled_from([settings["agent"], settings["schedule"], settings["machine"], settings])
    )
    part[data.draw(st.sampled_from(sorted(part.keys() - {"agent", "schedule", "machine"})))] = value
    folder = tmp_path_factory.mktemp("changed")
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    try:
        read = Settings.read(folder).check()
    except ValueError:
        return
    for name in ("data", "offline_run"):  # a relative path is made absolute
        if settings[name] is not None:
            settings[name] = str(Path(settings[name]).expanduser().absolute())
    assert json.loads(json.dumps(as_json(read))).items() >= settings.items()


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_as_a_config(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_bytes(contents)
    with pytest.raises(ValueError, match="is not the config.json of a run"):
        Settings.read(folder)


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no run"):
        Settings.read(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--env pointmaze-medum-navigate-singletask-task1-v0",
            f"env is .*Nearest:.* {DEFAULT_ENV}",
        ),
        ("--env cube-single-play-v0", "Nearest: cube-single-play-singletask-v0"),
        ("--method dpf", "method is 'dpf'; known methods: .*dfp"),
        ("--preset desktop", "preset is 'desktop'; known presets: laptop, paper"),
        (
            "--field kernel",
            "'kernel' is not one of drifting, drifting-relative, published, likelihood, energy",
        ),
        ("--field likelihood:-1", "wanted a positive"),
        ("--improve-field energy:2", "wanted a number with 0 < beta < 2"),
        ("--lr 0", "--lr is 0.0; wanted a positive"),
        ("--lr -0.1", "--lr is -0.1"),
        ("--lr nan", "--lr is nan"),
        ("--lr inf", "--lr is inf"),
        ("--gamma 1", "--gamma is 1.0; wanted a discount"),
        ("--chunk 0", "--chunk is 0; wanted at least 1"),
        ("--generated 1", "--generated is 1; wanted at least 2"),
        ("--candidates 2 --top-k 3", "--candidates is 2; wanted at least 3"),
        ("--hidden 32 0", "--hidden is 0; wanted at least 1"),
        ("--lam -1", "--lam is -1.0; wanted at least 0"),
        ("--lam nan", "--lam is nan"),
        ("--target-rate 2", "--target-rate is 2.0; wanted a share"),
        ("--old-rate -1", "--old-rate is -1.0"),
        ("--online-share 1.5", "--online-share is 1.5; wanted a share"),
        ("--batch 0", "--batch is 0"),
        ("--online-steps -1", "--online-steps is -1; wanted at least 0"),
        ("--eval-every 0", "--eval-every is 0; wanted at least 1"),
        ("--eval-episodes 0", "--eval-episodes is 0"),
        ("--checkpoint-every 0", "--checkpoint-every is 0"),
        ("--log-every 0", "--log-every is 0"),
        ("--data-rows 0", "--data-rows is 0"),
        ("--seed -1", "--seed is -1; wanted at least 0"),
        ("--threads 0", "--threads is 0; wanted at least 1"),
        ("--envs 0", "--envs is 0; wanted at least 1"),
        (f"--seed {10**30}", "--seed is 10+; wanted at most 9,223,372,036,854,775,807"),
        (f"--threads {10**9}", "--threads is 10+; wanted at most 1,024"),
        (f"--hidden 8 {10**9}", "--hidden is 10+; wanted at most 1,000,000"),
        (f"--chunk {10**9}", "--chunk is 10+; wanted at most"),
        (f"--batch {10**12}", "--batch is 10+; wanted at most"),
        (f"--candidates {10**400}", "--candidates is 10+; wanted at most"),
        (f"--method bfn --act-samples {10**9}", "--act-samples is 10+; wanted at most"),
        (f"--envs {10**9}", "--envs is 10+; wanted at most"),
        (f"--offline-steps {10**30}", "--offline-steps is 10+; wanted at most"),
        (f"--online-steps {10**30}", "--online-steps is 10+; wanted at most"),
        (f"--eval-episodes {10**12}", "--eval-episodes is 10+; wanted at most"),
        (f"--data-rows {10**18}", "--data-rows is 10+; wanted at most"),
        ("--device cupboard", "--device is 'cupboard', which torch cannot use here"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_was_wanted(flags, message):
    with pytest.raises(ValueError, match=message):
        from_command_line(flags.split())


@pytest.mark.parametrize("flags", ["--lr fast", "--seed 1.5", "--colour red", "--agent.lr 1"])
def test_a_flag_that_cannot_be_read_ends_with_code_2(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        from_command_line(flags.split())
    assert flags.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (FileNotFoundError("x is not there"), 2, "error: x is not there\n"),
        (ConnectionError("no route"), 2, "error: no route\n"),
        (UserError("wait for it"), 2, "error: wait for it\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 2, "error: out of memory (MemoryError); choose smaller sizes\n"),
    ],
)
def test_expected_errors_are_one_line(error, code, text, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err == text


def test_our_own_errors_are_one_line_and_those_of_others_keep_their_traceback(capsys):
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        presets.preset("desktop", "dfp", DEFAULT_ENV)
    assert (
        capsys.readouterr().err
        == "error: preset is 'desktop'; known presets: laptop, paper, laptop-offline, paper-offline\n"
    )
    with pytest.raises(json.JSONDecodeError), one_line_errors():
        json.loads("{")
    with pytest.raises(RuntimeError, match="size mismatch"), one_line_errors():
        _ = torch.ones(2, 3) @ torch.ones(2)


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**55), lambda: np.empty(2**55), lambda: bytearray(2**62)],
    ids=["torch", "numpy", "python"],
)
def test_sizes_beyond_the_memory_are_one_line(allocate, capsys):
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        allocate()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (")


def test_a_reader_that_stops_early_ends_a_command_without_a_message():
    """As in `python -m wgflow_rl.sweep --settings | head -1`."""
    code = "from wgflow_rl.utils.cli import one_line_errors\nwith one_line_errors():\n    print('a line\\n' * 100_000)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
