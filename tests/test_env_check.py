"""`envs.check` names every fault of an environment in a line; the guard names those met in training."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from tests.walk import Recorder, Walk, rng
from wgflow_rl import envs
from wgflow_rl.envs.guard import EnvironmentFailed, Guard
from wgflow_rl.training.rollout import Collector, evaluate
from wgflow_rl.training.settings import DEFAULT_ENV


def altered(**members):
    """A walk with other members; `answer` alters what a step returns, `first` what a reset returns."""
    answer, first = members.pop("answer", None), members.pop("first", None)

    class Altered(Walk):
        def step(self, action):
            came = super().step(action)
            return answer(*came) if answer else came

        def reset(self, *, seed=None, options=None):
            came = super().reset(seed=seed)
            return first(*came) if first else came

    return type("Altered", (Altered,), members)()


class Unseeded(Walk):
    drawn = np.random.default_rng(0)

    def look(self):
        return (super().look() + self.drawn.normal(size=2)).astype(np.float32)


class Carried(Walk):
    """The second episode is longer."""

    def reset(self, *, seed=None, options=None):
        self.limit += 1
        return super().reset(seed=seed)


class Reusing(Walk):
    buffer = np.empty(2, np.float32)

    def look(self):
        self.buffer[:] = super().look()
        return self.buffer


FAULTS = {
    "dictionaries": (
        altered(observation_space=Dict({"x": Box(-1, 1, (2,))})),
        "observation space is Dict.*FlattenObservation",
    ),
    "pictures": (altered(observation_space=Box(0, 255, (8, 8, 3), np.uint8)), "Box of one axis"),
    "float64": (
        altered(observation_space=Box(-1, 1, (2,), np.float64)),
        "observations are float64; wanted float32",
    ),
    "discrete actions": (altered(action_space=Discrete(3)), "action space is Discrete"),
    "wide actions": (altered(action_space=Box(-2, 2, (1,))), r"actions are in \[-2, 2\].*Rescale"),
    "unbounded actions": (altered(action_space=Box(-np.inf, np.inf, (1,))), r"in \[-inf, inf\]"),
    "list": (altered(answer=lambda obs, *rest: (list(obs), *rest)), "observation that is list"),
    "other type": (
        altered(answer=lambda obs, *rest: (obs.astype(np.float64), *rest)),
        r"observation that is float64 \(2,\)",
    ),
    "other shape": (altered(first=lambda obs, info: (obs[:1], info)), r"reset returns.*\(1,\)"),
    "NaN": (altered(answer=lambda obs, *rest: (obs * np.nan, *rest)), "NaN or infinity"),
    "old gym": (altered(answer=lambda obs, r, done, _, info: (obs, r, done, info)), "step.*wanted"),
    "no info": (altered(first=lambda obs, info: obs), "reset.*wanted"),
    "no reward": (altered(answer=lambda obs, _, *rest: (obs, None, *rest)), "reward None"),
    "no bool": (altered(answer=lambda o, r, _, *rest: (o, r, 0, *rest)), "terminated=0; wanted"),
    "no success": (altered(answer=lambda *came: (*came[:4], {})), "no 'success'"),
    "raises": (altered(answer=lambda *came: 1 / 0), "raises ZeroDivisionError"),
    "unseeded": (Unseeded(), "equal actions differ at step 0"),
    "carried over": (Carried(), "differ at step|have 8 and 9 steps"),
    "endless": (Walk(limit=10**9), "has not ended after 50 steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_a_line(name):
    env, says = FAULTS[name]
    with pytest.raises(ValueError, match=f"(?s)cannot be trained on:\n- .*{says}") as refused:
        envs.check(env, longest=50)
    assert len(str(refused.value).splitlines()) == 2


def test_faults_are_listed_together():
    env = altered(answer=lambda obs, *rest: (obs.tolist(), None, 0, 0, {}))
    with pytest.raises(ValueError, match="cannot be trained on") as refused:
        envs.check(env)
    assert len(str(refused.value).splitlines()) == 6


@pytest.mark.parametrize("env", [Walk(), Reusing()], ids=["plain", "reusing"])
def test_an_environment_without_faults_passes(env):
    envs.check(env)


def test_environments_of_this_package_pass():
    envs.check(envs.make(DEFAULT_ENV))


def test_a_registered_environment_is_converted():
    """Float64 and list observations, actions in [-2, 2], no success and no end: converted, and then without fault."""
    inner = altered(
        answer=lambda obs, r, *rest: (obs.tolist(), r, *rest[:2], {}),
        action_space=Box(-2, 2, (1,), np.float32),
        observation_space=Box(-np.inf, np.inf, (2,), np.float64),
    )
    inner.limit = 10**9
    envs.register("walks", ["walk-v0"], lambda env: inner, success=lambda *_: False, limit=9)
    try:
        env = envs.make("walk-v0")
        envs.check(env)
        env.reset(seed=0)
        env.step(np.ones(1))
        assert inner.actions[-1] == 2.0
    finally:
        del envs.SOURCES["walks"]


GUARD = Guard("walk", longest=20)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (altered(answer=lambda obs, *rest: (obs * np.nan, *rest)), "observation [nan nan]"),
        (altered(answer=lambda obs, *rest: (np.ones(3), *rest)), "observation of shape (3,)"),
        (altered(answer=lambda obs, _, *rest: (obs, -np.inf, *rest)), "reward -inf"),
        (altered(answer=lambda obs, *rest: ({"x": obs}, *rest)), "observation of type dict"),
        (altered(answer=lambda obs, *rest: (None, *rest)), "observation of type NoneType"),
        (altered(answer=lambda obs, *rest: ([[1], [1, 2]], *rest)), "observation of type list"),
        (altered(answer=lambda obs, _, *rest: (obs, None, *rest)), "reward None"),
        (Walk(limit=10**9), "has not ended its episode"),
    ],
    ids=["NaN", "shape", "infinity", "dict", "None", "ragged", "no reward", "endless"],
)
def test_training_names_the_call_of_an_invalid_answer(env, says):
    for play in (
        lambda: collect(env, 30),
        lambda: evaluate(Recorder(3), [env], episodes=1, seed=0, first_episode=0, guard=GUARD),
    ):
        call = r".* in step (1|20) of episode 0 of walk, reset\(seed=\d+\), action \["
        with pytest.raises(EnvironmentFailed, match=re.escape(says) + call):
            play()


def collect(env, steps):
    collector, policy, generator = Collector([env], seed=0, guard=GUARD), Recorder(3), rng()
    return [collector.step(policy, generator) for _ in range(steps)]


@pytest.mark.parametrize("convert", [np.float64, list], ids=["float64", "list"])
def test_rows_are_float32_whatever_the_environment_returns(convert):
    env = altered(
        answer=lambda obs, *rest: (convert(obs), *rest),
        first=lambda obs, info: (convert(obs), info),
    )
    for row, wanted in zip(collect(env, 9), collect(Walk(), 9), strict=True):
        for name in ("obs", "next_obs"):
            assert row[name].dtype == np.float32
            np.testing.assert_array_equal(row[name], wanted[name])


def test_a_long_episode_that_ends_is_no_fault():
    assert len(collect(gymnasium.wrappers.TimeLimit(Walk(limit=10**9), 20), 45)) == 45
