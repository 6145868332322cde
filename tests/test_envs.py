"""Environments: names, conventions, and episodes that are a function of (seed, actions)."""

import functools
import tempfile

import gymnasium
import numpy as np
import pytest

from wgflow_rl import envs

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"
ANT = "antmaze-medium-navigate-singletask-task1-v0"
HUMANOID = "humanoidmaze-medium-navigate-singletask-task1-v0"
BOTH = pytest.mark.parametrize("env", [MAZE, ARM, ANT, HUMANOID], indirect=True)

made = functools.cache(envs.make)  # an arm takes a second to make


@pytest.fixture
def env(request):
    return made(request.param)


def actions_for(env, steps, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (steps, *env.action_space.shape))
        .astype(np.float32)
    )


def episode(env, seed, actions):
    observations = [env.reset(seed=seed)[0]]
    rewards = []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), np.array(rewards)


def test_every_name_is_registered_with_ogbench():
    import ogbench  # noqa: F401

    names = envs.ogbench.NAMES
    assert len(names) == len(set(names)) == 6 * len(envs.ogbench.SUITES)
    assert set(names) < set(envs.names())
    for name in names:
        assert envs.ogbench.gym_id(name) in gymnasium.registry


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("cube-singel-play-singletask-task2-v0", "cube-single-play-singletask-task2-v0"),
        ("cube-single-navigate-singletask-task2-v0", "cube-single-play-singletask-task2-v0"),
        (
            "pointmaze-medium-navigate-singletask-task6-v0",
            "pointmaze-medium-navigate-singletask-task5-v0",
        ),
        ("pointmaze-medium", "pointmaze-medium-navigate-singletask-v0"),
        ("", "names()"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match="not one of") as error:
        envs.parse(wrong)
    assert nearest in str(error.value)
    with pytest.raises(ValueError, match="not one of"):
        envs.make(wrong)


def test_data_files_do_not_depend_on_the_task():
    assert {envs.parse(n).dataset for n in envs.ogbench.NAMES if n.startswith("scene")} == {
        "scene-play-v0"
    }


@BOTH
def test_observations_are_float32_and_in_their_space(env):
    observation, _ = env.reset(seed=0)
    after = env.step(np.zeros(env.action_space.shape))[0]
    assert observation.dtype == after.dtype == np.float32
    assert env.observation_space.contains(observation) and env.observation_space.contains(after)
    assert env.action_space.low.min() == -1 and env.action_space.high.max() == 1


@BOTH
def test_an_episode_is_a_function_of_seed_and_actions(env):
    actions = actions_for(env, 25)
    first = episode(env, 7, actions)
    episode(env, 8, actions[:5])  # whatever happened before
    np.random.random(3)  # noqa: NPY002
    again = episode(env, 7, actions)
    elsewhere = episode(envs.make(env.name), 7, actions)
    for other in (again, elsewhere):
        np.testing.assert_array_equal(first[0], other[0])
        np.testing.assert_array_equal(first[1], other[1])
    assert not np.array_equal(first[0][0], episode(env, 8, [])[0][0])


@BOTH
def test_the_seed_in_info_replays_an_episode_and_the_first_seed_orders_all(env):
    env.reset(seed=3)
    starts = [env.reset() for _ in range(3)]
    env.reset(seed=3)
    for start, info in starts:
        same, same_info = env.reset()
        np.testing.assert_array_equal(start, same)
        assert info["seed"] == same_info["seed"]
    last, info = starts[-1]
    np.testing.assert_array_equal(last, env.reset(seed=info["seed"])[0])
    assert len({info["seed"] for _, info in starts}) == 3


@BOTH
def test_a_reset_leaves_numpys_global_generator_alone(env):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    env.reset(seed=5)
    env.reset()
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@BOTH
def test_actions_are_clipped_to_the_box(env):
    unit = np.ones(env.action_space.shape)
    np.testing.assert_array_equal(
        episode(env, 1, [unit] * 3)[0], episode(env, 1, [5 * unit] * 3)[0]
    )


@BOTH
def test_an_action_that_is_not_finite_is_refused(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="every entry must be finite"):
        env.step(np.full(env.action_space.shape, np.nan))


@BOTH
def test_the_time_limit_truncates(env):
    limit = {MAZE: 1000, ARM: 200, ANT: 1000, HUMANOID: 2000}[env.name]
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape)
    for step in range(1, limit + 1):
        _, reward, terminated, truncated, info = env.step(still)
        assert (terminated, truncated, info["success"]) == (False, step == limit, False)
        assert reward == -1.0


def test_success_ends_the_episode_one_action_after_the_goal_is_reached():
    env = envs.make(MAZE)
    env.reset(seed=0)
    env.unwrapped.set_xy(env.unwrapped.cur_goal_xy)
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, True)

    env.reset(seed=0)
    goal = np.asarray(env.unwrapped.cur_goal_xy)
    # the tolerance is 1: this action reaches it, the next is told so
    env.unwrapped.set_xy(goal - [1.05, 0])
    for expected in ((-1.0, False, False), (0.0, True, True)):
        _, reward, terminated, _, info = env.step(np.array([1.0, 0.0]))
        assert (reward, terminated, info["success"]) == expected


def test_no_file_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    envs.make(MAZE).reset(seed=0)
    assert not list(tmp_path.iterdir())
