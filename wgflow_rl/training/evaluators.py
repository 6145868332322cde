"""Evaluate the policy of a run in this process, or its checkpoints in a worker while training continues.

An evaluation is a function of the policy's weights, the seed and the step alone, so its numbers do not depend on where
and when it is computed.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Pipe
from typing import Any, Self

import gymnasium
import torch

from wgflow_rl import envs, plugins
from wgflow_rl.agents.agent import Agent
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import checkpoint, matmul
from wgflow_rl.training.rollout import EVAL_ENVS, Evaluation, evaluate
from wgflow_rl.training.settings import Machine, Settings
from wgflow_rl.training.snapshot import restore, under
from wgflow_rl.training.state import TrainingState
from wgflow_rl.training.trained import build_for
from wgflow_rl.utils.cli import UserError
from wgflow_rl.utils.processes import without_main

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def pool_size(settings: Settings) -> int:
    """The number of environments in which a run is evaluated."""
    return min(EVAL_ENVS, settings.schedule.eval_episodes)


def evaluate_step(
    agent: Agent, pool: Sequence[gymnasium.Env], *, settings: Settings, step: int, guard: Guard
) -> Evaluation:
    """Evaluate an agent as the run of these settings does at `step`. Raises: EnvironmentFailed."""
    return evaluate(
        agent.act,
        pool,
        episodes=settings.schedule.eval_episodes,
        seed=settings.seed,
        first_episode=step,
        guard=guard,
        eval_seed=settings.schedule.eval_seed,
    )


class InlineEvaluator:
    """Evaluates the current policy at once, while training waits."""

    def __init__(self, state: TrainingState, pool: Sequence[gymnasium.Env], guard: Guard):
        self.state, self.pool, self.guard = state, pool, guard

    def submit(self, step: int) -> Future[Evaluation]:
        state, future = self.state, Future()
        result = evaluate_step(
            state.agent, self.pool, settings=state.settings, step=step, guard=self.guard
        )
        future.set_result(result)
        return future


class AsyncEvaluator:
    """One worker process that evaluates the checkpoints of a run, for the duration of a `with` block.

    The worker ends with the block, and with this process however that ends. Ctrl-C and SIGTERM do not stop it, also
    where they are sent to the whole process group: the run may still need its result.

    The worker imports the modules that register the environment and the method, but not the main module, so a script
    needs no `__main__` guard.

    Raises:
        UserError: If the script itself registers the environment or the method.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        modules = _modules(settings)
        context = multiprocessing.get_context("spawn")
        reader, self._lifeline = Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            mp_context=context,
            initializer=_start_worker,
            initargs=(reader, settings.machine, modules),
        )
        # The worker inherits the blocked signals, so that none ends it while it still imports. The first task starts
        # it now: otherwise the first evaluation would wait for the imports.
        with reader, _blocked(*STOP_SIGNALS), without_main():
            self._executor.submit(int)

    def submit(self, step: int) -> Future[Evaluation]:
        """Begin to evaluate the checkpoint of `step`, which must stay on the disk until the result is there.

        The future raises what the evaluation raised, or BrokenProcessPool if the worker died.
        """
        try:
            return self._executor.submit(evaluate_checkpoint, self._settings, step)
        except BrokenProcessPool as error:  # died while idle
            future: Future[Evaluation] = Future()
            future.set_exception(error)
            return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lifeline.close()  # ends the worker: an evaluation that nobody waits for is given up
        self._executor.shutdown(cancel_futures=True)


def _modules(settings: Settings) -> tuple[str, ...]:
    """Return the modules that the worker must import to know the environment and the method."""
    source = envs.SOURCES[envs.parse(settings.env).source]
    modules = {"env": getattr(source, "module", ""), "method": type(settings.agent).__module__}
    for setting, module in modules.items():
        if module == "__main__":
            raise UserError(
                f"the {setting} {getattr(settings, setting)!r} is registered in the script itself, which the process "
                "of asynchronous evaluations does not import. Move it to a module that the script imports, or train "
                "without async_eval."
            )
    return tuple(module for module in modules.values() if module)


@contextlib.contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals in this thread, and in the processes it starts; those that arrive are delivered after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker -----------------------------------------------------------------------------------------------


def _start_worker(lifeline: Any, machine: Machine, modules: tuple[str, ...]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_at_eof, args=[lifeline], daemon=True).start()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    plugins.load(modules, optional=True)


def _exit_at_eof(lifeline: Any) -> None:
    """End this process when the other end of the connection is closed: by the run, or because it was killed."""
    lifeline.poll(None)
    os._exit(1)


def evaluate_checkpoint(settings: Settings, step: int) -> Evaluation:
    """Evaluate the checkpoint of a step of a run, on the CPU.

    Raises: FileNotFoundError and ValueError as `checkpoint.load`; EnvironmentFailed.
    """
    agent, pool = _agent_and_envs(settings)
    saved = checkpoint.load(settings.folder / "checkpoints", step=step, rows=False)
    restore(agent, under(saved.tensors, "agent"))
    with matmul.using(settings.machine.route), settings.make_guard() as guard:
        return evaluate_step(agent, pool, settings=settings, step=step, guard=guard)


@functools.cache
def _agent_and_envs(settings: Settings) -> tuple[Agent, list[gymnasium.Env]]:
    plugins.load(settings.plugin, optional=True)
    pool = [settings.make_env() for _ in range(pool_size(settings))]
    return build_for(pool[0], settings.agent), pool
