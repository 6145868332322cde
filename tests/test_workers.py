"""Environments in other processes are those of this one, only elsewhere: every number, every error, every end."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs import untrained
from tests.tiny_runs import Recorder, outcome, resume, run, small_world, stop_after
from tests.walk import Failing, Reporting, Walk, failing
from wgflow_rl.envs.guard import EnvironmentFailed, Guard
from wgflow_rl.envs.processes import Served
from wgflow_rl.envs.workers import AHEAD, environments
from wgflow_rl.evaluate import load_agent, run_episodes
from wgflow_rl.training.rollout import Collector, evaluate

ROOT = Path(__file__).resolve().parent.parent
GUARD = Guard("walk")


@pytest.fixture(scope="module", params=[7, 2 * AHEAD], ids=["short", "long"])
def elsewhere(request):
    """(a function that makes a walk of some length here, three of them in two other processes)."""
    make = partial(Walk, request.param)
    with environments(make, 3, processes=2) as envs:
        yield make, envs


def assert_same_rows(one, other):
    for row, wanted in zip(one, other, strict=True):
        for name, value in wanted.items():
            np.testing.assert_array_equal(
                row[name], value, err_msg=name, strict=name in ("obs", "actions")
            )


# ---- the same numbers --------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    count=st.integers(1, 3),
    chunk=st.sampled_from([1, 2, 5, AHEAD + 3]),
    steps=st.integers(1, 40),
    stop=st.data(),
)
def test_rows_collected_elsewhere_are_those_collected_here(elsewhere, count, chunk, steps, stop):
    """Also from a state that was saved on the way, in whichever place."""
    make, remote = elsewhere
    at = stop.draw(st.integers(0, steps))
    expected = None
    for envs in ([make() for _ in range(count)], remote[:count]):
        policy, generator = Recorder(chunk), torch.Generator().manual_seed(1)
        first = Collector(envs, seed=3, guard=GUARD)
        rows = [first.step(policy, generator) for _ in range(at)]
        tensors, state = first.state()
        second = Collector(envs, seed=3, guard=GUARD)
        second.load_state({name: t.clone() for name, t in tensors.items()}, state)
        rows += [second.step(policy, generator) for _ in range(steps - at)]
        expected = rows if expected is None else expected
        assert_same_rows(rows, expected)


@settings(max_examples=8)
@given(pool=st.integers(1, 3), episodes=st.integers(1, 5), chunk=st.integers(1, 9))
def test_an_evaluation_elsewhere_is_the_one_here(elsewhere, pool, episodes, chunk):
    make, remote = elsewhere
    results = [
        evaluate(Recorder(chunk), envs, episodes=episodes, seed=4, first_episode=9, guard=GUARD)
        for envs in ([make() for _ in range(pool)], remote[:pool])
    ]
    for here, there in zip(*results, strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_simulator_elsewhere_is_the_one_here(tmp_path):
    agent, settings, _ = load_agent(untrained(tmp_path))
    results = [run_episodes(agent, settings, 2, processes=processes) for processes in (0, 1)]
    for here, there in zip(*results, strict=True):
        np.testing.assert_array_equal(here, there)
    assert results[0].lengths.min() > 100


def test_an_action_other_than_the_one_that_was_announced_is_refused(elsewhere):
    _, (env, *_) = elsewhere
    env.reset(seed=0)
    env.play([np.ones(1, np.float32), np.zeros(1, np.float32)])
    env.step(np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"was to be \[0\.\], but \[1\.\] is asked for"):
        env.step(np.ones(1, np.float32))


# ---- several environments that take turns ------------------------------------------------------------------------


@given(
    count=st.integers(1, 4),
    chunk=st.integers(1, 5),
    limit=st.integers(1, 8),
    steps=st.integers(1, 40),
)
def test_environments_take_turns_and_play_episodes_of_their_own(count, chunk, limit, steps):
    envs = [Walk(limit) for _ in range(count)]
    policy, generator = Recorder(chunk), torch.Generator()
    collector = Collector(envs, seed=3, guard=GUARD)
    rows = [collector.step(policy, generator) for _ in range(steps)]
    seeds = [seed for env in envs for seed in env.seeds]
    assert len(set(seeds)) == len(seeds)
    for i, env in enumerate(envs):
        own = rows[i::count]
        assert [float(row["actions"][0]) for row in own] == env.actions
        for before, after in pairwise(own):
            assert np.array_equal(before["next_obs"], after["obs"]) != before["terminals"]


def test_one_question_serves_every_environment_that_has_no_chunk_left():
    policy, generator = Recorder(3), torch.Generator()
    collector = Collector([Walk(100) for _ in range(4)], seed=0, guard=GUARD)
    for _ in range(2 * 3 * 4):
        collector.step(policy, generator)
    assert [len(obs) for obs in policy.seen] == [4, 4]


# ---- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    small_world(monkeypatch.setattr)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--envs", "3")], ids=["one environment", "three"])
def test_a_run_with_processes_is_the_run_without_wherever_it_stops(
    flags, small, tmp_path, monkeypatch
):
    """Stopped in the middle of chunks of two and between them, before and after the first row is written."""
    run(tmp_path / "whole", *flags)
    expected = outcome(tmp_path / "whole")
    run(tmp_path / "elsewhere", *flags, "--env-processes", "2")
    assert outcome(tmp_path / "elsewhere") == expected
    for step in range(5, 12):
        folder, there, here = (
            tmp_path / str(step),
            ("--env-processes", "1"),
            ("--env-processes", "0"),
        )
        first, second = (there, here) if step % 2 else (here, there)
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(SystemExit, match="130"):
                run(folder, *flags, *first)
        resume(folder, *second)
        assert outcome(folder) == expected, f"stopped after {step}"


def test_runs_with_one_and_with_three_environments_differ(small, tmp_path):
    run(tmp_path / "1")
    run(tmp_path / "3", "--envs", "3")
    assert outcome(tmp_path / "1") != outcome(tmp_path / "3")


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def play(envs):
    collector, generator = Collector(envs, seed=0, guard=GUARD), torch.Generator()
    for _ in range(9):
        collector.step(Recorder(5), generator)


def test_an_environment_that_raises_elsewhere_is_named_as_here():
    said = []
    for processes in (0, 1):
        with (
            environments(Failing, 1, processes=processes) as envs,
            pytest.raises(EnvironmentFailed) as error,
        ):
            play(envs)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert re.match(
        r"the environment failed in step 4 of episode 0 of walk, .*: KeyError: 'joint limit'\.",
        said[1],
    )
    assert "in step" in "".join(error.value.__cause__.__notes__)  # where, over there


@pytest.mark.parametrize("processes", [0, 1])
def test_an_environment_that_cannot_be_made_says_why(processes):
    with (
        pytest.raises((OSError, RuntimeError), match="no model"),
        environments(failing, 2, processes=processes),
    ):
        pass


def test_a_process_that_is_killed_is_named_with_the_step_that_waits_for_it():
    with environments(Walk, 1, processes=1) as envs:
        collector, generator = Collector(envs, seed=0, guard=GUARD), torch.Generator()
        collector.step(Recorder(1), generator)
        os.kill(envs[0].process.pid, signal.SIGKILL)
        with pytest.raises(
            EnvironmentFailed,
            match=r"in step 2 of episode 0 .*: ProcessEnded: .*\(SIGKILL; was there",
        ):
            collector.step(Recorder(1), generator)


def test_a_process_is_light_and_computes_on_one_thread():
    with environments(Reporting, 1, processes=1) as (env,):
        assert env.reset(seed=0)[1] == {"success": (False, "1")}


RUN = """
import collections, itertools, os, signal, sys, time
import numpy as np
from tests.walk import Walk
from wgflow_rl.envs.guard import Guard
from wgflow_rl.envs.workers import environments

class Told(Walk):
    def step(self, action):
        exec(os.environ["DO"])
        return super().step(action)

if __name__ == "__main__":
    import told
    signal.signal(signal.SIGINT, lambda *_: None)
    with environments(told.Told, 1, processes=1) as (env,), Guard("walk", timeout=1.0) as guard:
        guard.reset(env, episode=0, seed=1)
        print(env.process.pid, flush=True)
        sys.stdin.readline()
        answer = guard.step(env, np.zeros(1, np.float32), episode=0, seed=1, step=1)
        print(answer[1], flush=True)
"""


@pytest.fixture
def started(tmp_path):
    """A function that starts a script whose environment does something in its step; gives it and the other process."""
    (tmp_path / "told.py").write_text(RUN)
    there = []

    def start(what):
        there.append(
            subprocess.Popen(
                [sys.executable, "told.py"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DO": what},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return there[-1], int(there[-1].stdout.readline())

    yield start
    for process in there:
        process.kill()
        process.communicate()


def ended(pid):
    """Whether a process ends within a while."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_an_interrupt_does_not_reach_the_other_process(started):
    process, worker = started("pass")
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate("go on\n", timeout=60)
    assert (said, errors, process.returncode) == ("-1.0\n", "", 0)
    assert ended(worker)


def test_a_stop_that_is_sent_to_every_process_is_left_to_the_run(started):
    """As Slurm and systemd send it: the run ends after a checkpoint, for which this process is still asked."""
    process, worker = started("pass")
    os.kill(worker, signal.SIGTERM)
    said, errors = process.communicate("go on\n", timeout=60)
    assert (said, errors, process.returncode) == ("-1.0\n", "", 0)
    assert ended(worker)


class Leave:
    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_ended_itself_is_one_that_said_why():
    with Served("wgflow_rl.envs.host", pipes=1, first=Leave()) as process:
        ended = process.ended("the evaluation")
    assert str(ended) == (
        "the process of the evaluation has ended (exit code 3; what it said of it stands above)"
    )


def test_what_cannot_be_sent_is_an_error_before_there_is_a_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with (
        pytest.raises((pickle.PicklingError, AttributeError)),
        environments(lambda: Walk(7), 1, processes=1),
    ):
        pass


def test_the_other_process_ends_with_a_run_that_is_killed_even_in_the_middle_of_a_step(started):
    process, worker = started("time.sleep(600)")
    process.stdin.write("go on\n")
    process.stdin.flush()
    time.sleep(0.2)
    process.kill()
    assert ended(worker)


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    ["while True: time.sleep(600)", "collections.deque(itertools.repeat(0), 0)"],
    ids=["in peace", "in C that holds Python's lock"],
)
def test_a_step_that_hangs_elsewhere_ends_both_processes_and_says_where(what, started):
    process, worker = started(what)
    _, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == 2
    assert 'told.py", line 10 in step' in errors
    said = "error: the environment did not answer for 1 s (--env-timeout) in step 1 of episode 0 of walk, reset(seed=1)"
    assert any(line.startswith(said) for line in errors.splitlines()), errors
    assert ended(worker)
