"""Evaluate checkpoints in another process while training goes on.

An evaluation is a function of the policy's weights, the seed and the step alone, so the numbers do not depend on where
and when it is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from wgflow_rl import envs
from wgflow_rl.agents import presets
from wgflow_rl.envs.guard import Guard
from wgflow_rl.envs.processes import Failure, Served, answered, attach
from wgflow_rl.envs.workers import environments
from wgflow_rl.training import checkpoint, matmul
from wgflow_rl.training.rollout import EVAL_ENVS, Evaluation, evaluate
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.snapshot import restore, under
from wgflow_rl.utils.cli import UserError


class EvaluationFailed(UserError):
    """An evaluation in the other process raised, or the process died."""


@contextlib.contextmanager
def async_evaluator(settings: Settings) -> Iterator[AsyncEvaluator]:
    """Start a process that evaluates the checkpoints of a run; it ends with the block."""
    with Served("wgflow_rl.training.async_eval", pipes=1, first=settings) as process:
        yield AsyncEvaluator(process.connections[0], process)


class AsyncEvaluator:
    """Submits the checkpoint of one step at a time, which must stay on the disk until the result is there."""

    def __init__(self, connection: Connection, process: Served):
        self._connection, self._process = connection, process

    def submit(self, step: int) -> PendingEvaluation:
        with contextlib.suppress(BrokenPipeError):  # `result` reports the dead process
            self._connection.send(step)
        return PendingEvaluation(self._connection, self._process, step)


class PendingEvaluation:
    """An evaluation in progress, with the two methods of a future that the loop uses."""

    def __init__(self, connection: Connection, process: Served, step: int):
        self._connection, self._process, self._step = connection, process, step

    def done(self) -> bool:
        """Return True if the result is ready."""
        return self._connection.poll()

    def result(self) -> Evaluation:
        """Wait for the result. Raises: EvaluationFailed."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):  # no answer, or half of one
            cause = self._process.ended("the evaluation")
        else:
            if not isinstance(answer, Failure):
                return answer
            cause = answer.error()
        raise EvaluationFailed(
            f"the evaluation of step {self._step} failed: {type(cause).__name__}: {cause} (--resume repeats it)"
        ) from cause


# ---- in the other process ----------------------------------------------------------------------------------------


def serve() -> None:
    """Evaluate the steps that are sent until the parent is gone; started by `processes.Served`."""
    (connection,), settings = attach()
    torch.set_grad_enabled(False)
    torch.set_num_threads(settings.machine.threads)
    with contextlib.suppress(EOFError, ConnectionError), contextlib.ExitStack() as stack:
        evaluator = answered(lambda: stack.enter_context(checkpoint_evaluator(settings)))
        while True:
            step = connection.recv()
            failed = isinstance(evaluator, Failure)
            connection.send(evaluator if failed else answered(partial(evaluator, step)))


@contextlib.contextmanager
def checkpoint_evaluator(settings: Settings):
    """Make environments and an agent on the CPU; yields a function from a step to the evaluation of its checkpoint."""
    schedule = settings.schedule
    make, count = partial(envs.make, settings.env), min(EVAL_ENVS, schedule.eval_episodes)
    with (
        matmul.using(settings.machine.route),
        Guard(settings.env, timeout=settings.machine.env_timeout) as guard,
        environments(make, count, processes=settings.machine.env_processes) as pool,
    ):
        obs, action = pool[0].observation_space.shape, pool[0].action_space.shape
        assert obs and action
        agent = presets.build(settings.agent, obs_dim=obs[0], action_dim=action[0])

        def evaluate_step(step: int) -> Evaluation:
            folder: Path = settings.folder / "checkpoints"
            saved = checkpoint.load(folder, step=step, rows=False)
            restore(agent, under(saved.tensors, "agent"))
            return evaluate(
                agent.act,
                pool,
                episodes=schedule.eval_episodes,
                seed=settings.seed,
                first_episode=step,
                guard=guard,
            )

        yield evaluate_step
