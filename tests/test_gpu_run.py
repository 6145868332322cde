"""benchmarks/gpu_run.sh: a run in slices ends as the run in one piece, however each slice was stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import FLAGS, outcome, start, tiny_world

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"""#!{sys.executable}
'''Train in the tiny world, and send the signal of STOP="TERM 9" to this process in that environment step.'''
import os, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from tests.runs import tiny_world
from tests.walk import WalkHome
from wgflow_rl import train

assert sys.argv[1:3] == ["-m", "wgflow_rl.train"]
tiny_world(setattr)
name, at = os.environ["STOP"].split()
steps, move = 0, WalkHome.step
def step(*args):
    global steps
    steps += 1
    if steps == int(at):
        os.kill(os.getpid(), getattr(signal, "SIG" + name))
    return move(*args)
WalkHome.step = step
train.main(sys.argv[3:])
"""


@pytest.mark.slow
def test_a_run_in_slices_is_the_run_in_one_piece(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    on_cpu = "--method dfp-ml-energy --preset laptop --device cpu --noise-on cpu --no-async-eval"
    env = "--env pointmaze-medium-navigate-singletask-task1-v0"
    flags = [*f"--state {tmp_path}/state {on_cpu} {env}".split(), *FLAGS.split()]

    def call(stop):
        given = os.environ | {"PYTHON": str(python), "STOP": stop, "OMP_NUM_THREADS": "1"}
        command = ["bash", str(ROOT / "benchmarks/gpu_run.sh"), *flags]
        done = subprocess.run(command, env=given, capture_output=True, text=True)
        return done.returncode, done.stderr

    for stop, code in (("TERM 4", 75), ("KILL 3", 75), ("TERM 0", 0)):
        assert (found := call(stop))[0] == code, found[1]
    tiny_world(monkeypatch.setattr)
    start(tmp_path / "whole")
    assert outcome(tmp_path / "state" / "run") == outcome(tmp_path / "whole")
