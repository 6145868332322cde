"""Evaluation tells how far it is, on a terminal, without changing what it finds."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from scipy.stats import binomtest

from tests.runs import untrained
from tests.walk import Walk
from wgflow_rl import envs, evaluate
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import trained
from wgflow_rl.training.rollout import Evaluation
from wgflow_rl.training.settings import from_command_line


def test_a_bar_counts_the_episodes_that_have_ended(tmp_path, monkeypatch, capsys):
    run = untrained(tmp_path / "run")
    counts = []

    class Bar(trained.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings | {"disable": False, "mininterval": 0})

        def refresh(self, *args, **kwargs):
            counts.append(self.n)
            return super().refresh(*args, **kwargs)

    agent, settings, _ = trained.load_agent(run)
    real = envs.make
    monkeypatch.setattr(envs, "make", lambda name, **kw: TimeLimit(real(name, **kw), 20))
    quiet = trained.run_episodes(agent, settings, 3)
    assert capsys.readouterr().err == ""  # no terminal, no bar
    monkeypatch.setattr(trained, "tqdm", Bar)
    shown = trained.run_episodes(agent, settings, 3)
    assert (shown.lengths == quiet.lengths).all()
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert "3/3" in capsys.readouterr().err


def test_the_printed_interval_is_wilsons_of_95_percent(tmp_path, monkeypatch):
    played = Evaluation(np.arange(20) < 13, np.zeros(20), np.ones(20, int))
    monkeypatch.setattr(evaluate, "run_episodes", lambda *_, **__: played)
    args = evaluate.Args(run=untrained(tmp_path / "run"), episodes=20)
    interval = binomtest(13, 20).proportion_ci(0.95, method="wilson")
    found = evaluate.report(args)
    assert found["success"] == 0.65
    assert found["interval_95"] == pytest.approx([interval.low, interval.high], abs=5e-4)


def test_a_simulator_that_hangs_ends_the_commands_on_finished_runs_too(monkeypatch):
    """After --env-timeout of the run, which a thread counts in ticks of a tenth of it."""

    class Stuck(Walk):
        def step(self, action):
            ended.wait(10)
            return super().step(action)

    ended, hung = threading.Event(), []

    def exits(self, call):
        hung.append((self.timeout, call.step))
        ended.set()

    monkeypatch.setattr(Guard, "_exit", exits)
    monkeypatch.setattr(envs, "make", lambda *_, **__: Stuck())
    settings = from_command_line(["--env-timeout", "0.2"])
    agent = SimpleNamespace(act=lambda obs, generator: torch.zeros(len(obs), 1, 1))
    for use in (
        lambda: trained.run_episodes(agent, settings, 1),
        lambda: trained.visited_states(agent, settings, 2),
    ):
        ended.clear()
        hung.clear()
        use()
        assert hung[0] == (0.2, 1)
