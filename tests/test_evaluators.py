"""Asynchronous evaluation changes no number, whenever it ends and wherever the run stops, and hides no error."""

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.disk import Disk, put
from tests.runs import FLAGS, outcome, resume, start, start_or_resume, stop_after, tiny_world
from tests.walk import WalkHome
from wgflow_rl import envs
from wgflow_rl.training import loop
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.evaluators import AsyncEvaluator, evaluate_checkpoint
from wgflow_rl.training.loop import EvaluationFailed
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.settings import from_command_line
from wgflow_rl.training.trained import load_agent
from wgflow_rl.training.updates import TrainingDiverged
from wgflow_rl.utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
ASYNC, INLINE = ("--async-eval",), ("--no-async-eval",)


class Late(Future):
    """An evaluation that is done after it has been polled so many times, or is waited for."""

    def __init__(self, evaluate, step, polls):
        super().__init__()
        self.evaluate, self.step, self.left = evaluate, step, polls

    def done(self):
        self.left -= 1
        return self.left < 0

    def result(self, timeout=None):
        return self.evaluate(self.step)


def late_by(polls):
    """A stand-in for `AsyncEvaluator` that evaluates checkpoints in this process."""

    def make(settings):
        evaluate = partial(evaluate_checkpoint, settings)
        return contextlib.nullcontext(
            SimpleNamespace(submit=lambda step: Late(evaluate, step, polls))
        )

    return make


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run leaves whose training waits for its evaluations."""
    folder = tmp_path_factory.mktemp("inline") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny_world(patch.setattr)
        start(folder)
    return outcome(folder)


@pytest.fixture
def tiny(monkeypatch):
    tiny_world(monkeypatch.setattr)
    monkeypatch.setattr(loop, "AsyncEvaluator", late_by(2))


def evaluation(successes):
    """An evaluation of three episodes."""
    return Evaluation(np.arange(3) < successes, np.zeros(3), np.ones(3))


def diverge_at(patch, step):
    advance = loop.Trainer.advance

    def diverges(self):
        if self.state.step == step - 1:
            raise TrainingDiverged(f"critic_loss is not finite at step {step} (online).")
        return advance(self)

    patch.setattr(loop.Trainer, "advance", diverges)


def evaluated_steps(folder):
    return [int(row["step"]) for row in read_rows(folder / "eval.csv")[1]]


# ---- the same run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polls", [0, 1, 3, math.inf])
def test_a_run_with_asynchronous_evaluations_is_the_run_without(
    polls, expected, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "AsyncEvaluator", late_by(polls))
    start(tmp_path / "run", *ASYNC)
    assert outcome(tmp_path / "run") == expected


def test_training_continues_during_an_evaluation(tiny, tmp_path, monkeypatch):
    """Done at the third poll: the row of step 4 is written by step 6, that of 8 by 9, whose checkpoint waits for it."""
    seen, advance = {}, loop.Trainer.advance

    def watched(self):
        seen[self.state.step + 1] = evaluated_steps(tmp_path / "run")
        return advance(self)

    monkeypatch.setattr(loop.Trainer, "advance", watched)
    start(tmp_path / "run", *ASYNC)
    assert seen[5] == seen[6] == []
    assert seen[7] == seen[8] == seen[9] == [4]
    assert seen[10] == [4, 8]


@pytest.mark.parametrize(
    "step", [pytest.param(s, marks=[] if s in (4, 9) else pytest.mark.slow) for s in range(3, 12)]
)
def test_a_run_may_stop_in_one_mode_and_resume_in_the_other(
    step, expected, tiny, tmp_path, monkeypatch
):
    for name, first, second in (("async", ASYNC, INLINE), ("inline", INLINE, ASYNC)):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(SystemExit, match="130"):
                start(tmp_path / name, *first)
        resume(tmp_path / name, *second)
        assert outcome(tmp_path / name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_run_stopped_at_any_change_of_its_folder_ends_as_the_one_that_was_not(
    how, expected, tiny, tmp_path
):
    with Disk(tmp_path / "whole") as disk:
        start(tmp_path / "whole", *ASYNC)
    states = {tuple(tree.items()): tree for tree in getattr(disk, how)}
    assert len(states) > 20
    for at, tree in enumerate(states.values()):
        put(tree, tmp_path / str(at))
        start_or_resume(tmp_path / str(at))
        assert outcome(tmp_path / str(at)) == expected, f"from {list(tree)}"


@pytest.mark.parametrize("what", ["env", "method"])
def test_a_worker_refuses_at_once_what_the_script_itself_registers(
    what, tmp_path, own_registries, monkeypatch
):
    settings = from_command_line(["--run-dir", str(tmp_path)])
    if what == "env":
        envs.register("own", ["own-v0"], WalkHome, limit=5)
        assert envs.SOURCES["own"].module == __name__
        envs.SOURCES["own"] = replace(envs.SOURCES["own"], module="__main__")
        settings = replace(settings, env="own-v0")
    else:
        monkeypatch.setattr(type(settings.agent), "__module__", "__main__")
    with pytest.raises(UserError, match=f"the {what} .* is registered in the script itself"):
        AsyncEvaluator(settings)


# ---- failures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluator(tmp_path):
    """A real worker for a run without checkpoints."""
    with AsyncEvaluator(from_command_line([*FLAGS.split(), "--run-dir", str(tmp_path)])) as it:
        yield it
    assert not multiprocessing.active_children()


def test_a_worker_survives_stop_signals_from_its_start_and_returns_what_an_evaluation_raises(
    evaluator,
):
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluator.submit(3).result()
    os.kill(worker.pid, signal.SIGINT)
    with pytest.raises(FileNotFoundError):
        evaluator.submit(4).result()


def test_the_evaluation_of_a_worker_that_dies_or_is_dead_is_a_broken_pool(evaluator):
    pending = evaluator.submit(3)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    for future in (pending, evaluator.submit(4)):
        with pytest.raises(BrokenProcessPool):
            future.result()


# A run in the tiny world, from a script without a `__main__` guard, whose worker executes DO in each environment step.
TINY = """
import multiprocessing, os, signal, time
from tests.runs import tiny_world
from tests.walk import WalkHome
from wgflow_rl.envs import ogbench

ogbench.module = __name__  # the worker imports it, as the module that registers an environment
tiny_world(setattr)
step = WalkHome.step

def altered(*args):
    if multiprocessing.parent_process() is not None:
        exec(os.environ["DO"])
    return step(*args)

WalkHome.step = altered
"""
RUN = """
import sys
import tiny
from tests.runs import start

start(sys.argv[1], "--async-eval", *sys.argv[2:])
"""


@contextlib.contextmanager
def running(folder, what, *flags):
    """A run in a process of its own, in `folder / "run"`; its worker executes `what` in each step."""
    (folder / "tiny.py").write_text(TINY)
    (folder / "script.py").write_text(RUN)
    process = subprocess.Popen(
        [sys.executable, "script.py", "run", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "DO": what},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_with_a_real_worker_of_a_script_without_a_guard_is_the_run_without(
    expected, tmp_path
):
    with running(tmp_path, "pass") as process:
        out, err = process.communicate()
    assert out == ""
    # The data of the test are too few to reach the goal, which training says.
    assert [line for line in err.splitlines() if "no transition of the data" not in line] == []
    assert process.returncode == 0
    assert outcome(tmp_path / "run") == expected


def test_a_run_whose_worker_is_killed_names_the_step_and_resumes(expected, tiny, tmp_path):
    with running(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        _, said = process.communicate()
    assert process.returncode == 1
    assert "EvaluationFailed: the evaluation of step 4 failed: BrokenProcessPool: " in said
    resume(tmp_path / "run", *INLINE)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.slow
def test_an_environment_that_hangs_in_the_worker_ends_the_run_with_its_call(tmp_path):
    with running(tmp_path, "time.sleep(600)", "--env-timeout", "0.5") as process:
        _, said = process.communicate()
    assert process.returncode == 1
    assert "error: the environment did not answer for 0.5 s (--env-timeout) in step 1 of" in said
    assert "EvaluationFailed: the evaluation of step 4 failed: BrokenProcessPool: " in said


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_run_whose_whole_group_is_told_to_stop_evaluates_and_resumes(
    number, expected, tiny, tmp_path
):
    """Sent once, in the first step of the first evaluation."""
    once = f"os.path.exists('sent') or (open('sent', 'w'), os.killpg(0, signal.{number}))"
    with running(tmp_path, once) as process:
        _, said = process.communicate()
    assert process.returncode in (0, 130), said  # 0: the last step had been taken
    assert evaluated_steps(tmp_path / "run")[0] == 4
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


@pytest.mark.slow
def test_the_worker_of_a_run_that_is_killed_ends_even_during_an_evaluation(tmp_path):
    with running(tmp_path, "print(os.getpid(), flush=True), time.sleep(600)") as process:
        worker = int(process.stdout.readline())
        process.kill()
        assert gone(worker)


def gone(pid):
    """Wait until a process has ended; False if it has not after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_failed_evaluation_ends_the_run_and_is_repeated_on_resume(
    expected, tiny, tmp_path, monkeypatch
):
    def fail(self):
        raise ValueError("no such weight")

    with monkeypatch.context() as patch:
        patch.setattr(Late, "result", fail)
        named = "the evaluation of step 4 failed: ValueError: no such weight"
        with pytest.raises(EvaluationFailed, match=named):
            start(tmp_path / "run", *ASYNC)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


def test_a_run_that_diverges_writes_the_row_of_the_open_evaluation(tiny, tmp_path, monkeypatch):
    diverge_at(monkeypatch, 6)
    with pytest.raises(TrainingDiverged):
        start(tmp_path / "run", *ASYNC)
    assert evaluated_steps(tmp_path / "run") == [4]
    assert load_agent(tmp_path / "run", best=True)[2] == 4


def test_a_divergence_is_named_although_the_open_evaluation_fails(tiny, tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("no such weight")

    diverge_at(monkeypatch, 6)
    monkeypatch.setattr(Late, "result", fail)
    with pytest.raises(TrainingDiverged, match="is not finite at step 6"):
        start(tmp_path / "run", *ASYNC)


@pytest.mark.parametrize(("later", "best"), [(1, 8), (0, 4), (2, 8)])
def test_the_best_checkpoint_is_that_of_the_best_row_although_it_was_written_before_it(
    later, best, tiny, tmp_path, monkeypatch
):
    """Rates of thirds, which a row rounds: the later of equal ones is the best, one with fewer successes is not."""
    diverge_at(monkeypatch, 9)
    monkeypatch.setattr(Late, "result", lambda self: evaluation({4: 1, 8: later}[self.step]))
    with pytest.raises(TrainingDiverged):
        start(tmp_path / "run", *ASYNC)
    assert evaluated_steps(tmp_path / "run") == [4, 8]
    assert load_agent(tmp_path / "run", best=True)[2] == best
