"""Asynchronous evaluation changes no number, whenever it ends and wherever the run stops, and hides no error."""

import contextlib
import math
import os
import signal
import struct
from multiprocessing import Pipe
from types import SimpleNamespace

import numpy as np
import pytest
from disk import Disk, put
from runs import FLAGS, outcome, resume, start, start_or_resume, stop_after, tiny_world

from wgflow_rl.envs.processes import ProcessEnded
from wgflow_rl.evaluate import load_agent
from wgflow_rl.training import loop
from wgflow_rl.training.async_eval import (
    EvaluationFailed,
    PendingEvaluation,
    async_evaluator,
    checkpoint_evaluator,
)
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.settings import from_command_line
from wgflow_rl.training.table import read_rows
from wgflow_rl.training.updates import TrainingDiverged

ASYNC, INLINE = ("--async-eval",), ("--no-async-eval",)


class Late:
    """An evaluation that is done after it has been polled so many times, or is waited for."""

    def __init__(self, evaluate, step, polls):
        self.evaluate, self.step, self.left = evaluate, step, polls

    def done(self):
        self.left -= 1
        return self.left < 0

    def result(self):
        return self.evaluate(self.step)


def late_by(polls):
    """A stand-in for `async_evaluator` that evaluates checkpoints in this process."""

    @contextlib.contextmanager
    def evaluator(settings):
        with checkpoint_evaluator(settings) as evaluate:
            yield SimpleNamespace(submit=lambda step: Late(evaluate, step, polls))

    return evaluator


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
    monkeypatch.setattr(loop, "async_evaluator", late_by(2))


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
    monkeypatch.setattr(loop, "async_evaluator", late_by(polls))
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


# ---- failures ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def submitted(folder, step=3):
    """A real process, told to evaluate a checkpoint that is not there."""
    settings = from_command_line([*FLAGS.split(), "--run-dir", str(folder)])
    with async_evaluator(settings) as evaluator:
        yield evaluator.submit(step)


def test_an_evaluation_that_raises_is_named_with_its_step(tmp_path):
    with (
        submitted(tmp_path) as pending,
        pytest.raises(EvaluationFailed, match=r"of step 3 failed: FileNotFoundError: no check"),
    ):
        pending.result()


def test_a_killed_process_is_named_with_the_step(tmp_path):
    with submitted(tmp_path) as pending:
        os.kill(pending._process.pid, signal.SIGKILL)
        with pytest.raises(EvaluationFailed, match=r"of step 3 failed: ProcessEnded: .*SIGKILL"):
            pending.result()


def test_half_an_answer_is_a_dead_process():
    here, there = Pipe()
    os.write(there.fileno(), struct.pack("!i", 100) + b"half")
    there.close()
    process = SimpleNamespace(ended=lambda what: ProcessEnded(f"{what} has ended"))
    with pytest.raises(EvaluationFailed, match="of step 3 failed: ProcessEnded: the evaluation"):
        PendingEvaluation(here, process, 3).result()


def test_a_failed_evaluation_ends_the_run_and_is_repeated_on_resume(
    expected, tiny, tmp_path, monkeypatch
):
    def fail(self):
        raise EvaluationFailed("the evaluation of step 4 failed")

    with monkeypatch.context() as patch:
        patch.setattr(Late, "result", fail)
        with pytest.raises(EvaluationFailed):
            start(tmp_path / "run", *ASYNC)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


def test_a_run_that_diverges_writes_the_row_of_the_open_evaluation(tiny, tmp_path, monkeypatch):
    diverge_at(monkeypatch, 6)
    with pytest.raises(TrainingDiverged):
        start(tmp_path / "run", *ASYNC)
    assert evaluated_steps(tmp_path / "run") == [4]
    assert load_agent(tmp_path / "run", best=True)[2] == 4


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
