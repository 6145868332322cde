"""Evaluations beside training: processes that play the checkpoint of a step while the next steps are made.

An evaluation is a function of the policy's weights, the seed and the step alone, so it gives the same numbers wherever
and whenever it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from wgflow_rl.envs.processes import Failure, Served, dealt
from wgflow_rl.training.evaluator import Asked
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.settings import Settings


class EvaluationFailed(RuntimeError):
    """An evaluation in another process came to no end."""


@contextlib.contextmanager
def evaluators(settings: Settings, count: int) -> Iterator[list[Evaluator]]:
    """One for each of `count` runs that differ in their seeds alone, dealt to `settings.eval_processes` processes."""
    settings = replace(settings, threads=torch.get_num_threads())
    with dealt(
        "wgflow_rl.training.evaluator", count, processes=settings.eval_processes, first=settings
    ) as pairs:
        yield [Evaluator(connection, process) for connection, process in pairs]


class Evaluator:
    """Evaluates the checkpoints of one run, one after the other."""

    def __init__(self, connection: Connection, process: Served):
        self._connection, self._process = connection, process

    def begin(self, folder: Path, step: int, seed: int) -> None:
        """Evaluate the checkpoint of a step, which must stay there until the answer has come."""
        self.step = step
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says so
            self._connection.send(Asked(folder, step, seed))

    def ended(self) -> bool:
        """Whether `result` would not wait."""
        return self._connection.poll()

    def result(self) -> Evaluation:
        """What was begun, waited for. Raises: EvaluationFailed."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):  # none, or half of one
            cause = self._process.ended("the evaluation")
        else:
            if not isinstance(answer, Failure):
                return answer
            cause = answer.error()
        raise EvaluationFailed(
            f"the evaluation of step {self.step} failed: {type(cause).__name__}: {cause} (--resume makes it again)"
        ) from cause
