"""The other end of `wgflow_rl.training.beside`: a process that plays the policies of checkpoints."""

from __future__ import annotations

import contextlib
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch

from wgflow_rl import envs
from wgflow_rl.agents import methods
from wgflow_rl.envs.guard import Guard
from wgflow_rl.envs.processes import Failure, answered, attach
from wgflow_rl.envs.workers import environments
from wgflow_rl.training import checkpoint, routing
from wgflow_rl.training.rollout import EVAL_ENVS, Evaluation, evaluate
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.snapshot import restore, under


class Asked(NamedTuple):
    """The checkpoint to evaluate, and the seed of its start states."""

    folder: Path
    step: int
    seed: int


def serve() -> None:
    """Evaluate what is asked for until the other side is gone; run by `processes.Served`."""
    connections, settings = attach()
    torch.set_grad_enabled(False)
    torch.set_num_threads(settings.threads)
    with contextlib.suppress(EOFError, ConnectionError), contextlib.ExitStack() as opened:
        stage = answered(lambda: Stage(settings, opened))
        while True:
            ready = wait(connections)
            for connection in connections:
                if connection in ready:
                    asked = connection.recv()
                    failed = isinstance(stage, Failure)
                    connection.send(stage if failed else answered(partial(stage.play, asked)))


class Stage:
    """Environments, and an agent whose weights are those of the checkpoint that it plays.

    Args:
        settings: of the run, its route settled and its threads counted; the agent is on the CPU whatever its device.
        opened: where what has to be closed goes.
    """

    def __init__(self, settings: Settings, opened: contextlib.ExitStack):
        self.settings = settings
        opened.enter_context(routing.applied(settings.route, precision="f32", device="cpu"))
        self.guard = opened.enter_context(Guard(settings.env, timeout=settings.env_timeout))
        count = min(EVAL_ENVS, settings.schedule.eval_episodes)
        make = partial(envs.make, settings.env)
        self.envs = opened.enter_context(
            environments(make, count, processes=settings.env_processes)
        )
        obs, action = self.envs[0].observation_space.shape, self.envs[0].action_space.shape
        assert obs and action
        self.agent = methods.build(settings.agent, obs_dim=obs[0], action_dim=action[0])

    def play(self, asked: Asked) -> Evaluation:
        """The evaluation that training would have made at that step."""
        saved = checkpoint.load(asked.folder, step=asked.step, rows=False)
        restore(self.agent, under(saved.tensors, "agent"))
        return evaluate(
            self.agent.act,
            self.envs,
            episodes=self.settings.schedule.eval_episodes,
            seed=asked.seed,
            first_episode=asked.step,
            guard=self.guard,
        )
