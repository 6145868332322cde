"""Failures of environments are named with the call, and what an environment does later changes no observation."""

import time

import numpy as np
import pytest

from tests.children import python
from tests.walk import Recorder, Walk, rng
from wgflow_rl.envs.guard import EnvironmentFailed, Guard
from wgflow_rl.training.rollout import Collector

GUARD = Guard("walk")


def test_rows_of_an_environment_that_reuses_its_observation_are_those_of_one_that_does_not():
    class Reusing(Walk):
        buffer = np.empty(2, np.float32)

        def look(self):
            self.buffer[:] = super().look()
            return self.buffer

    rows = []
    for env in (Walk(limit=4), Reusing(limit=4)):
        collector, policy, generator = Collector([env], seed=0, guard=GUARD), Recorder(3), rng()
        rows.append([collector.step(policy, generator) for _ in range(9)])
    for wanted, row in zip(*rows, strict=True):
        for name in ("obs", "next_obs"):
            np.testing.assert_array_equal(row[name], wanted[name])


def test_an_environment_that_raises_is_named_with_the_call():
    class Failing(Walk):
        def step(self, action):
            if self.time == 3:
                raise KeyError("joint limit")
            return super().step(action)

    collector, generator = Collector([Failing()], seed=0, guard=GUARD), rng()
    wanted = r"the environment failed in step 4 of episode 0 of walk, .*: KeyError: 'joint limit'\."
    for _ in range(3):
        collector.step(Recorder(5), generator)
    with pytest.raises(EnvironmentFailed, match=wanted):
        collector.step(Recorder(5), generator)


def test_an_environment_that_cannot_be_reset_is_named():
    class Stubborn(Walk):
        def reset(self, **options):
            raise OSError("no model")

    with pytest.raises(
        EnvironmentFailed,
        match=r"failed in episode 0 of walk, reset\(seed=\d+\): OSError: no model",
    ):
        Collector([Stubborn()], seed=0, guard=GUARD)


HANG = """
import ctypes, sys, time
from wgflow_rl.envs.guard import Guard
class Env:
    def step(self, action):
        exec(sys.argv[1])
with Guard("walk", timeout=0.2) as guard:
    guard.step(Env(), [0.5], episode=3, seed=11, step=4)
"""


@pytest.mark.parametrize(
    "how", ["time.sleep(99)", "ctypes.CDLL(None).sleep(99)"], ids=["Python", "C"]
)
def test_an_environment_that_hangs_ends_the_process_with_its_call_and_stack(how):
    done = python("-c", HANG, how)
    assert done.returncode == 2
    assert "line 6 in step" in done.stderr
    assert done.stderr.startswith(
        "error: the environment did not answer for 0.2 s (--env-timeout) in step 4 of episode 3 of walk, "
        "reset(seed=11), action [0.5]."
    )


def test_a_guard_does_not_end_calls_that_together_take_longer_than_its_timeout():
    class Slow(Walk):
        def step(self, action):
            time.sleep(0.15)
            return super().step(action)

    with Guard("walk", timeout=0.6) as guard:
        collector = Collector([Slow()], seed=0, guard=guard)
        for _ in range(8):
            collector.step(Recorder(2), rng())
