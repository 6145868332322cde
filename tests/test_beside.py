"""Evaluations beside training change no number, whenever they end and wherever the run stops, and hide no error."""

import contextlib
import math
import os
import signal
import struct
from multiprocessing import Pipe
from types import SimpleNamespace

import numpy as np
import pytest

from tests.disk import Disk, put
from tests.tiny_runs import FLAGS, outcome, resume, run, small_world, stop_after, table
from wgflow_rl import train
from wgflow_rl.envs.processes import ProcessEnded
from wgflow_rl.evaluate import load_agent
from wgflow_rl.training import beside
from wgflow_rl.training.beside import EvaluationFailed, evaluators
from wgflow_rl.training.evaluator import Asked, Stage
from wgflow_rl.training.finite import TrainingDiverged
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.settings import from_command_line
from wgflow_rl.training.table import read_rows

BESIDE, HERE = ("--eval-processes", "1"), ("--eval-processes", "0")


class Late:
    """An evaluator whose answer is there when it has been asked for `polls` times, or is waited for."""

    def __init__(self, stage, polls):
        self.stage, self.polls = stage, polls

    def begin(self, folder, step, seed):
        self.asked, self.left = Asked(folder, step, seed), self.polls

    def ended(self):
        self.left -= 1
        return self.left < 0

    def result(self):
        return self.stage.play(self.asked)


def late_by(polls):
    """What stands in for `evaluators`."""

    @contextlib.contextmanager
    def made(settings, count):
        with contextlib.ExitStack() as opened:
            stage = Stage(settings, opened)
            yield [Late(stage, polls) for _ in range(count)]

    return made


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run leaves whose training waits for its evaluations."""
    folder = tmp_path_factory.mktemp("here") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_world(patch.setattr)
        run(folder)
    return outcome(folder)


@pytest.fixture
def small(monkeypatch):
    small_world(monkeypatch.setattr)
    monkeypatch.setattr(train, "evaluators", late_by(2))


def rate(successes):
    """An evaluation of three episodes."""
    return Evaluation(np.arange(3) < successes, np.zeros(3), np.ones(3))


def diverge_at(patch, step):
    """Training diverges at a step."""
    advance = train.Trainer.advance

    def diverges(self):
        if self.step == step - 1:
            raise TrainingDiverged(f"critic_loss is not finite at step {step} (online).")
        return advance(self)

    patch.setattr(train.Trainer, "advance", diverges)
    patch.setattr(train.Trainer, "dump", lambda self, folder: folder / "batch")


# ---- the same run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polls", [0, 1, 3, math.inf])
def test_a_run_with_evaluations_beside_it_is_the_run_without(
    polls, expected, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "evaluators", late_by(polls))
    run(tmp_path / "run", *BESIDE)
    assert outcome(tmp_path / "run") == expected


def test_training_goes_on_meanwhile(small, tmp_path, monkeypatch):
    """The row of step 4 is waited for by the checkpoint of step 6, that of 8 by the one of step 9."""
    seen, advance = {}, train.Trainer.advance

    def watched(self):
        _, rows = read_rows(tmp_path / "run" / "eval.csv")
        seen[self.step + 1] = [int(row["step"]) for row in rows]
        return advance(self)

    monkeypatch.setattr(train.Trainer, "advance", watched)
    run(tmp_path / "run", *BESIDE)
    assert seen[5] == seen[6] == []
    assert seen[7] == seen[8] == seen[9] == [4]
    assert seen[10] == seen[11] == [4, 8]


@pytest.mark.parametrize("step", range(3, 12))
def test_a_run_may_stop_in_one_way_and_go_on_in_the_other(
    step, expected, small, tmp_path, monkeypatch
):
    for name, first, second in (("beside", BESIDE, HERE), ("here", HERE, BESIDE)):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(SystemExit, match="130"):
                run(tmp_path / name, *first)
        resume(tmp_path / name, *second)
        assert outcome(tmp_path / name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_run_stopped_at_any_change_of_its_folder_ends_as_the_one_that_was_not(
    how, expected, small, tmp_path
):
    with Disk(tmp_path / "whole") as disk:
        run(tmp_path / "whole", *BESIDE)
    states = {tuple(tree.items()): tree for tree in getattr(disk, how)}
    assert len(states) > 20
    for at, tree in enumerate(states.values()):
        folder = tmp_path / str(at)
        put(tree, folder)
        resume(folder) if (folder / "config.json").exists() else run(folder, *BESIDE)
        assert outcome(folder) == expected, f"from {list(tree)}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_seeds_stopped_at_any_change_of_their_folders_end_as_those_that_were_not(
    how, small, tmp_path
):
    """Together; every eighth of the changes since both have their settings."""

    def ended(folder):
        return [outcome(folder / f"run-s{seed}") for seed in (0, 1)]

    with Disk(tmp_path / "whole") as disk:
        (tmp_path / "whole").mkdir()
        train.main(
            [
                *FLAGS.split(),
                "--run-dir",
                str(tmp_path / "whole" / "run"),
                "--seeds",
                "0-1",
                *BESIDE,
            ]
        )
    expected = ended(tmp_path / "whole")
    trees = [
        tree for tree in getattr(disk, how) if all(f"run-s{s}/config.json" in tree for s in (0, 1))
    ]
    for at, tree in enumerate({tuple(tree.items()): tree for tree in trees}.values()):
        if at % 8 == 0:
            folder = tmp_path / str(at)
            put(tree, folder)
            train.main(["--resume", *(str(folder / f"run-s{seed}") for seed in (0, 1))])
            assert ended(folder) == expected, f"from {list(tree)}"


@pytest.mark.slow
def test_a_process_evaluates_what_training_would_have(maze_data, tmp_path):
    """A real simulator and a real process, for two seeds trained together."""
    short = FLAGS + " --data-rows 2000 --eval-episodes 1"
    for name, where in (("here", ()), ("beside", BESIDE)):
        folder = str(tmp_path / name)
        train.main([*short.split(), "--run-dir", folder, "--seeds", "0-1", *where])
    for seed in ("s0", "s1"):
        one, other = tmp_path / f"here-{seed}", tmp_path / f"beside-{seed}"
        assert outcome(one) == outcome(other)
        assert len(table(one, "eval.csv")[1]) == 3


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def begun(folder, step=3):
    settings = from_command_line(
        [*FLAGS.split(), "--route", "default", "--run-dir", str(folder), *BESIDE]
    )
    opened = contextlib.ExitStack()
    (evaluator,) = opened.enter_context(evaluators(settings, 1))
    evaluator.begin(folder, step, seed=0)
    return evaluator, opened


def test_an_evaluation_that_fails_says_which_and_why(tmp_path):
    evaluator, opened = begun(tmp_path)
    with (
        opened,
        pytest.raises(
            EvaluationFailed, match=r"of step 3 failed: FileNotFoundError: no checkpoint in"
        ),
    ):
        evaluator.result()


def test_a_process_that_is_killed_is_named_with_the_step(tmp_path):
    evaluator, opened = begun(tmp_path)
    os.kill(evaluator._process.pid, signal.SIGKILL)
    with (
        opened,
        pytest.raises(
            EvaluationFailed, match=r"of step 3 failed: ProcessEnded: .*SIGKILL; was there"
        ),
    ):
        evaluator.result()


def test_half_an_answer_is_that_of_a_process_that_has_ended():
    here, there = Pipe()
    os.write(there.fileno(), struct.pack("!i", 100) + b"half")
    there.close()
    evaluator = beside.Evaluator(
        here, SimpleNamespace(ended=lambda what: ProcessEnded(f"{what} has ended"))
    )
    evaluator.step = 3
    with pytest.raises(
        EvaluationFailed, match="of step 3 failed: ProcessEnded: the evaluation has ended"
    ):
        evaluator.result()


def test_a_failed_evaluation_ends_the_run_and_is_made_again(expected, small, tmp_path, monkeypatch):
    def fail(self):
        raise EvaluationFailed("the evaluation of step 4 failed")

    with monkeypatch.context() as patch:
        patch.setattr(Late, "result", fail)
        with pytest.raises(EvaluationFailed):
            run(tmp_path / "run", *BESIDE)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


def test_a_run_that_diverges_first_writes_the_row_of_the_evaluation_that_goes_on(
    small, tmp_path, monkeypatch
):
    diverge_at(monkeypatch, 6)
    with pytest.raises(TrainingDiverged):
        run(tmp_path / "run", *BESIDE)
    _, rows = read_rows(tmp_path / "run" / "eval.csv")
    assert [row["step"] for row in rows] == ["4"]
    assert load_agent(tmp_path / "run", best=True)[2] == 4


def test_the_best_checkpoint_is_that_of_the_best_row_though_its_evaluation_ended_after_it_was_written(
    small, tmp_path, monkeypatch
):
    """Rates of thirds, which a row rounds: the later of equal ones is the best, one of less success is not."""
    for later, best in ((1, 8), (0, 4), (2, 8)):
        folder = tmp_path / str(later)
        with monkeypatch.context() as patch:
            diverge_at(patch, 9)
            patch.setattr(Late, "result", lambda self: rate({4: 1, 8: later}[self.asked.step]))  # noqa: B023
            with pytest.raises(TrainingDiverged):
                run(folder, *BESIDE)
        assert [row["step"] for row in read_rows(folder / "eval.csv")[1]] == ["4", "8"]
        assert load_agent(folder, best=True)[2] == best


@pytest.mark.parametrize(
    ("broken", "step", "rows"), [(0, 6, [["4"], ["4"]]), (1, 8, [["4", "8"], ["4"]])]
)
def test_where_one_seed_diverges_at_its_checkpoint_evaluations_of_all_are_written(
    broken, step, rows, small, tmp_path, monkeypatch
):
    """Those that go on from the checkpoint before, and that of a seed whose checkpoint was just written."""
    save = train.Trainer.save
    monkeypatch.setattr(train, "evaluators", late_by(math.inf))

    def diverges(self, folder, **options):
        if self.step == step and self.settings.seed == broken:
            raise TrainingDiverged(
                f"policy.net.first.weight is not finite at step {step} (online)."
            )
        save(self, folder, **options)

    monkeypatch.setattr(train.Trainer, "save", diverges)
    with pytest.raises(SystemExit):
        train.main([*FLAGS.split(), "--run-dir", str(tmp_path / "run"), "--seeds", "0-1", *BESIDE])
    written = [read_rows(tmp_path / f"run-s{seed}" / "eval.csv")[1] for seed in (0, 1)]
    assert [[row["step"] for row in each] for each in written] == rows


def test_seeds_share_processes_and_no_more_are_started_than_there_are_seeds(tmp_path, monkeypatch):
    started = []

    class Counted(contextlib.nullcontext):
        def __init__(self, module, *, pipes, first):
            super().__init__(self)
            self.connections = [f"pipe {i} of {len(started)}" for i in range(pipes)]
            started.append(pipes)

    monkeypatch.setattr("wgflow_rl.envs.processes.Served", Counted)
    for processes, wanted in ((1, [5]), (2, [3, 2]), (9, [1, 1, 1, 1, 1])):
        started.clear()
        settings = from_command_line([*FLAGS.split(), "--eval-processes", str(processes)])
        with evaluators(settings, 5) as made:
            assert started == wanted
            assert len({evaluator._connection for evaluator in made}) == 5
