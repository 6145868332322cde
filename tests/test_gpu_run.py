"""benchmarks/gpu_run.sh: a run in slices ends as the run in one piece, however each slice was stopped; its table."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomllib
import torch

from tests.tiny_runs import FLAGS, go_on, outcome, small_world

ROOT = Path(__file__).resolve().parent.parent
ENV = "pointmaze-medium-navigate-singletask-task1-v0"
PYTHON = f"""#!{sys.executable}
'''A Python whose trainings need no simulator, and that STOP="TERM 9" ends by that signal in that environment step.'''
import os, signal, sys, time

if sys.argv[1] == "-":
    sys.argv = sys.argv[1:]
    exec(sys.stdin.read())
    sys.exit()
assert sys.argv[1:3] == ["-m", "wgflow_rl.train"]
how, at = os.environ["STOP"].split()
if how == "SLEEP":
    time.sleep(60)
sys.path.insert(0, {str(ROOT)!r})
from tests.tiny_runs import small_world
from tests.walk import WalkHome
from wgflow_rl import train
from wgflow_rl.utils import cli

small_world(setattr)
steps, move = 0, WalkHome.step
def step(*args):
    global steps
    steps += 1
    if steps == int(at):
        os.kill(os.getpid(), getattr(signal, "SIG" + how))
    return move(*args)
WalkHome.step = step
train.main(sys.argv[3:])
"""


@pytest.fixture
def call(tmp_path):
    """call(*flags, stop="TERM 9") -> the finished script."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def call(*flags, stop="NONE 0"):
        ours = {
            "PYTHON": str(python),
            "OUT": str(tmp_path / "out"),
            "STOP": stop,
            "OMP_NUM_THREADS": "1",
        }
        command = [
            "bash",
            str(ROOT / "benchmarks/gpu_run.sh"),
            "--state",
            str(tmp_path / "state"),
            *flags,
        ]
        return subprocess.run(command, env=os.environ | ours, capture_output=True, text=True)

    return call


@pytest.mark.slow
def test_a_run_in_slices_is_the_run_in_one_piece(call, tmp_path, monkeypatch):
    small_world(monkeypatch.setattr)
    go_on(tmp_path / "whole")

    dry = ("--device", "cpu", "--preset", "laptop", "--env", ENV, "--", *FLAGS.split())
    time_is_up = call("--minutes", "0.02", *dry, stop="SLEEP 0")
    assert (time_is_up.returncode, time_is_up.stdout[:17]) == (75, "no checkpoint yet"), (
        time_is_up.stderr
    )
    for stop in ("TERM 4", "KILL 3"):
        part = call(*dry, stop=stop)
        assert part.returncode == 75, part.stderr
        assert re.search(
            r"^step \d of 12(, lately .* ms a step)?\ncall again\n$", part.stdout, re.MULTILINE
        )
    done = call(*dry)
    assert done.returncode == 0, done.stderr

    name = f"dfp-{ENV}-s0"
    assert outcome(tmp_path / "state" / name) == outcome(tmp_path / "whole")
    small = {"eval.csv", "train.csv", "config.json", "curve.png"}
    assert {path.name for path in (tmp_path / "out" / name).iterdir()} == small
    for file in small:
        assert (tmp_path / "out" / name / file).read_bytes() == (
            tmp_path / "state" / name / file
        ).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_it_says_so_and_how_to_try_it(call):
    said = call()
    assert said.returncode == 1
    assert "finds no CUDA device" in said.stderr
    assert "--device cpu --preset laptop" in said.stderr


@pytest.mark.parametrize(
    ("flags", "message"), [(["--sed", "1"], "--sed is unknown"), (["--seed"], "--seed needs")]
)
def test_a_flag_that_it_does_not_have_is_named(flags, message, call):
    said = call(*flags)
    assert said.returncode == 2
    assert message in said.stderr


def test_what_the_script_asks_for_is_what_it_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [*project["dependencies"], *extras["rl"], *extras["plots"]]
    script = (ROOT / "benchmarks/gpu_run.sh").read_text()
    [asked] = re.findall(r"^packages=\((.*)\)$", script, re.MULTILINE)
    assert set(asked.split()) <= {re.match(r"[\w-]+", name)[0] for name in installed}


def test_a_table_that_takes_all_its_time_does_not_take_that_of_the_next_call(call, tmp_path):
    """`python` finds a device, is too slow for the table, and says what it is asked to train."""
    (tmp_path / "python").write_text("""#!/bin/bash
case $1 in
-) cat >/dev/null ;;
*update_gpu.py) echo table; exec sleep 60 ;;
*) echo train; exit 0 ;;
esac
""")
    first, second = call("--minutes", "0.05"), call("--minutes", "0.05")
    assert (first.returncode, first.stdout.split()) == (75, ["table", "call", "again"]), (
        first.stderr
    )
    assert (second.returncode, second.stdout.split()[0]) == (0, "train"), second.stderr


def test_an_update_that_cannot_be_recorded_is_made_without_a_graph_from_the_next_call_on(
    call, tmp_path
):
    (tmp_path / "python").write_text("""#!/bin/bash
[ "$1" != - ] || { cat >/dev/null; exit 0; }
echo "$*"
""")
    flags = ("--device", "cpu", "--preset", "laptop", "--env", ENV)
    assert " --graph " in call(*flags).stdout
    run = tmp_path / "state" / f"dfp-{ENV}-s0"
    run.mkdir()
    (run / "config.json").touch()
    resumed = call(*flags, "--no-graph").stdout
    assert f"--resume {run}" in resumed
    assert " --no-graph " in resumed


def test_a_set_up_that_was_cut_short_is_gone_on_with(tmp_path):
    """Its interpreter is there and a package is not; a set-up that has ended is not begun again."""
    script, python, setup = (
        tmp_path / part for part in ("benchmarks/gpu_run.sh", ".venv/bin/python", ".ci/setup")
    )
    for path, text in {
        script: (ROOT / "benchmarks/gpu_run.sh").read_text(),
        python: '#!/bin/bash\n[ "$1" != - ] || { cat >/dev/null; [ -e whole ] || echo mujoco; exit; }\necho train\n',
        setup: "echo set up; touch whole\n",
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {
        "OUT": str(tmp_path / "out")
    }
    command = ["bash", str(script), "--device", "cpu", "--state", str(tmp_path / "state")]
    first, second = (
        subprocess.run(command, env=env, capture_output=True, text=True) for _ in range(2)
    )
    assert first.stdout.split()[:3] == ["set", "up", "train"], first.stderr
    assert second.stdout.split()[0] == "train", second.stderr


def test_a_variant_that_cannot_be_made_leaves_the_others_in_the_table(
    tmp_path, monkeypatch, capsys
):
    """Updates of a small policy on the CPU, and a clock of it, in place of those on a device."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import update_gpu

    class Event:
        def __init__(self, enable_timing):
            self.synchronize = lambda: None

        def record(self):
            self.time = time.perf_counter()

        def elapsed_time(self, end):
            return (end.time - self.time) * 1e3

    def small(cfg, seeds, *, graph, device):
        if seeds == 4:
            raise torch.AcceleratorError("operation not permitted when stream is capturing")
        return made(
            dataclasses.replace(cfg, hidden=(4,), batch=4), seeds, graph=graph, device="cpu"
        )

    made = update_gpu.update_and_work
    monkeypatch.setattr(update_gpu, "update_and_work", small)
    monkeypatch.setattr(update_gpu, "RESULTS", tmp_path / "update_gpu.json")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(sys, "argv", ["update_gpu.py", "--updates", "1"])
    with pytest.raises(SystemExit, match="1"):
        update_gpu.main()
    said = capsys.readouterr()
    assert (
        said.err
        == "error: stacked graph, 4 seed(s): operation not permitted when stream is capturing\n"
    )
    rows = json.loads((tmp_path / "update_gpu.json").read_text())["rows"]
    seeds = [row["seeds"] for row in rows]
    assert seeds == [1, 1, 1, 2, 3, 5]
    assert len(said.out.splitlines()) == 1 + len(rows)
