"""Data: transitions in their order, labels equal to the environment's own, damage named with file and row."""

import urllib.error
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.maze_files import MAZE, change, maze_file
from wgflow_rl import data, envs
from wgflow_rl.data import Episodes, generated, ogbench

ARM = "cube-single-play-singletask-task2-v0"
ANT = "antmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture(scope="session")
def maze():
    return envs.make(MAZE)


@pytest.fixture(scope="session")
def arm():
    return envs.make(ARM)


@pytest.fixture
def short(monkeypatch):
    """Trajectories of 60 transitions; for generation in this process."""
    monkeypatch.setattr(generated, "LENGTH", 60)


# Reading


def test_d4rls_timeouts_end_trajectories_too(tmp_path, maze):
    both, plain = tmp_path / "both.npz", tmp_path / "plain.npz"
    arrays = maze_file(plain, [4, 5, 6])
    first = np.arange(15) == 3
    np.savez(both, **arrays | {"terminals": first, "timeouts": arrays["terminals"] & ~first})
    task = ogbench.fix_task(maze)
    wanted, found = ogbench.read(plain, MAZE, task), ogbench.read(both, MAZE, task)
    assert found.trajectories == 3
    for name in ("observations", "next_observations", "terminals", "rewards", "masks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.savez(both, **arrays | {"timeouts": np.full(15, 7)})
    with pytest.raises(ValueError, match="timeouts holds"):
        ogbench.read(both, MAZE, task)


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=5))
def test_each_trajectory_loses_its_last_row_and_keeps_its_order(tmp_path_factory, maze, lengths):
    path = tmp_path_factory.mktemp("maze") / "x.npz"
    arrays = maze_file(path, lengths)
    episodes = ogbench.read(path, MAZE, ogbench.fix_task(maze))
    np.testing.assert_array_equal(episodes.lengths, np.array(lengths) - 1)
    starts = np.cumsum([0, *lengths[:-1]])
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        first = start - i  # a row less for each trajectory before
        rows = slice(first, first + length - 1)
        whole = arrays["observations"][start : start + length]
        np.testing.assert_array_equal(episodes.observations[rows], whole[:-1])
        np.testing.assert_array_equal(episodes.next_observations[rows], whole[1:])
        np.testing.assert_array_equal(
            episodes.actions[rows], arrays["actions"][start : start + length - 1]
        )
        assert episodes.terminals[rows].tolist() == [False] * (length - 2) + [True]


@pytest.mark.parametrize("env", [MAZE, ARM])
def test_labels_are_those_of_ogbenchs_loader(env, tmp_path, short, request):
    import ogbench as official

    folder = generated.generate(env, root=tmp_path, rows=120, workers=1, progress=False)
    path = ogbench.files(folder, env)[0][0]
    task = request.getfixturevalue("maze" if env == MAZE else "arm")
    ours = ogbench.read(path, env, ogbench.fix_task(task))
    theirs, _ = official.make_env_and_datasets(
        env, dataset_path=str(path), dataset_only=True, cur_env=task
    )
    for name in ("observations", "actions", "next_observations", "rewards", "masks", "terminals"):
        np.testing.assert_array_equal(
            getattr(ours, name), theirs[name].astype(getattr(ours, name).dtype)
        )


def recorded(env, steps, drive):
    """Step an environment and keep what a file keeps, beside the rewards it gave; then the file's labels of it."""
    env.reset(seed=0)
    simulator = env.unwrapped
    rows, rewards, ended = [], [], []
    for step in range(steps):
        action = drive(step)
        state = simulator.data.qpos.copy()
        observation, reward, terminated, _, info = env.step(action)
        assert info["success"] == terminated
        rows.append({"observations": observation, "actions": action, "qpos": state})
        rewards.append(reward)
        ended.append(terminated)
    arrays = {
        name: np.stack([row[name] for row in [*rows, rows[-1]]]).astype(np.float32)
        for name in rows[0]
    }
    return arrays | {"terminals": np.arange(steps + 1) == steps}, np.array(rewards), np.array(ended)


def test_the_mazes_reward_online_is_the_label_of_the_same_state(maze, tmp_path):
    simulator = maze.unwrapped

    def drive(step):
        if step == 20:
            # Not at a distance of exactly 1.0 after some steps: the file's float32 may judge that otherwise.
            simulator.set_xy(np.asarray(simulator.cur_goal_xy) - [2.03, 0])
        return np.array([1.0, 0.0])

    arrays, rewards, ended = recorded(maze, 50, drive)
    np.savez(tmp_path / "x.npz", **arrays)
    labels = ogbench.read(tmp_path / "x.npz", MAZE, ogbench.fix_task(maze))
    np.testing.assert_array_equal(labels.rewards, rewards)
    np.testing.assert_array_equal(labels.masks == 0, ended)
    assert 0 < labels.successes < 50


def test_the_arms_reward_online_is_the_label_of_the_same_state(arm, tmp_path):
    simulator = arm.unwrapped

    def drive(step):
        if step in (6, 14):  # put the cube on its goal, take it away again
            qpos, qvel = simulator.data.qpos.copy(), simulator.data.qvel.copy()
            qpos[14:17] = simulator.data.mocap_pos[0] + [0.0, 0.0 if step == 6 else 0.1, 0.0]
            simulator.set_state(qpos, qvel)
            simulator.post_step()  # the simulator judges a state when a step ends
        return np.zeros(5)

    arrays, rewards, ended = recorded(arm, 20, drive)
    np.savez(tmp_path / "x.npz", **arrays)
    labels = ogbench.read(tmp_path / "x.npz", ARM, ogbench.fix_task(arm))
    np.testing.assert_array_equal(labels.rewards, rewards)
    np.testing.assert_array_equal(labels.masks == 0, ended)
    assert labels.masks.tolist() == [1] * 6 + [0] * 8 + [1] * 6


# Damage


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    maze_file(path, [10, 10])
    maze_file(path.with_name("pointmaze-medium-navigate-v0-val.npz"), [10])
    return path


def spoil(row, value):
    def change_one(array):
        array = array.copy()
        array[row] = value
        return array

    return change_one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": spoil(13, np.nan)},
            r"observations is not finite in row 13 \(1 such rows\)",
        ),
        ({"qpos": spoil(7, np.inf)}, "qpos is not finite in row 7"),
        ({"actions": spoil(3, 1.5)}, r"actions leave \[-1, 1\] in transition 3"),
        (
            {"qpos": spoil(4, (8.0, 0.0))},
            "row 4 is inside a wall: this is data of another environment",
        ),
        ({"qpos": spoil(4, (-80.0, 0.0))}, "row 4 is inside a wall"),
        ({"terminals": spoil(19, False)}, "the last row, 19, does not end a trajectory"),
        ({"terminals": np.ones_like}, "no transitions"),
        ({"observations": lambda x: x[:, :1]}, r"observations is \(20, 1\), wanted \(20, 2\)"),
        ({"actions": lambda x: np.tile(x, 3)}, "data of another environment"),
        ({"actions": lambda x: x[:-1]}, "different lengths"),
        ({"qpos": None}, "has no qpos; it holds observations, actions, qvel, terminals"),
    ],
)
def test_data_that_cannot_be_used_are_named_with_file_and_row(file, maze, changes, message):
    change(file, **changes)
    with pytest.raises(ValueError, match=message) as error:
        ogbench.read(file, MAZE, ogbench.fix_task(maze))
    assert str(file) in str(error.value)


def test_objects_are_never_unpickled(file, maze):
    arrays = dict(np.load(file, allow_pickle=False)) | {
        "actions": np.array([print] * 20, dtype=object)
    }
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match="objects, which are never loaded"):
        ogbench.read(file, MAZE, ogbench.fix_task(maze))


def test_missing_files_are_named_beside_those_found(file):
    validation = file.with_name("pointmaze-medium-navigate-v0-val.npz")
    validation.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {validation.name}; found {file.name}"):
        data.load(MAZE, folder=file.parent)
    with pytest.raises(
        FileNotFoundError, match=r"no cube-single-play-v0.npz and no .*found pointmaze"
    ):
        data.load(ARM, folder=file.parent)
    with pytest.raises(FileNotFoundError, match=r"found no .npz file"):
        data.load(MAZE, folder=file.parent / "nowhere")


def test_a_server_that_cannot_be_reached_is_answered_with_ways_out(tmp_path, monkeypatch):
    def unreachable(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(ConnectionError, match="no route to host") as error:
        ogbench.download(ARM, tmp_path / "new")
    message = str(error.value)
    assert "put cube-single-play-v0.npz, cube-single-play-v0-val.npz into" in message
    assert "python -m wgflow_rl.data generate" in message
    assert "--mirror https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/" in message
    with pytest.raises(ConnectionError) as error:
        ogbench.download(ANT, tmp_path / "new")
    assert "generate" not in str(error.value)


@pytest.mark.parametrize("env", [ANT, ANT.replace("antmaze", "humanoidmaze")])
def test_data_of_walkers_are_labelled_by_the_position_of_the_torso(env, tmp_path):
    """As OGBench's environments do, whose reward and success describe the state before the action."""
    made = envs.make(env)
    made.reset(seed=0)
    world, path = made.unwrapped, tmp_path / f"{envs.parse(env).dataset}.npz"
    goal, rows = world.cur_goal_xy, 6
    qpos = np.tile(world.data.qpos, (rows, 1))
    qpos[3, :2] = goal
    arrays = {
        "observations": np.zeros((rows, *made.observation_space.shape)),
        "actions": np.zeros((rows, *made.action_space.shape)),
        "qpos": qpos,
        "terminals": np.arange(rows) == rows - 1,
    }
    np.savez(path, **arrays)
    episodes = ogbench.read(path, env, ogbench.fix_task(made))
    np.testing.assert_array_equal(episodes.masks, [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(episodes.rewards, episodes.masks * -1.0)
    qpos[2, :2] = -world._maze_unit, 0  # the border of the maze
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="row 2 is inside a wall"):
        ogbench.read(path, env, ogbench.fix_task(made))


def test_no_data_of_walkers_can_be_generated(tmp_path):
    for rows in (None, 1000):
        with pytest.raises(ValueError, match="trained policies.*--data DIR"):
            data.load(ANT, rows=rows, progress=False)


def episodes(**changes):
    rows = 4
    arrays = {
        "observations": np.zeros((rows, 3), np.float32),
        "actions": np.zeros((rows, 2), np.float32),
        "next_observations": np.zeros((rows, 3), np.float32),
        "rewards": np.array([-1, -1, -1, 0], np.float32),
        "masks": np.array([1, 1, 1, 0], np.float32),
        "terminals": np.array([False, True, False, True]),
    }
    return Episodes(**(arrays | changes), env=MAZE)


def test_episodes_count_their_trajectories():
    whole = episodes()
    assert (len(whole), whole.trajectories, whole.successes) == (4, 2, 1)
    assert whole.lengths.tolist() == [2, 2]
    assert whole.returns.tolist() == [-2, -1]
    assert "4 transitions in 2 trajectories" in whole.summary()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rewards": np.zeros(3, np.float32)},
            r"rewards is float32 \(3,\); wanted float32 with 1 axes and 4 rows",
        ),
        ({"masks": np.ones(4)}, r"masks is float64 \(4,\)"),
        ({"masks": np.full(4, 0.5, np.float32)}, "wanted 0 .task ended. and 1"),
        (
            {"rewards": np.array([0, 0, np.nan, 0], np.float32)},
            "rewards is not finite in transition 2",
        ),
        ({"terminals": np.zeros(4, bool)}, "terminals is False in the last row"),
        ({"next_observations": np.zeros((4, 2), np.float32)}, "wanted the same"),
        ({"observations": np.zeros((0, 3), np.float32)}, "no transitions"),
    ],
)
def test_episodes_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        episodes(**changes)


# `data.load`


def test_load_generates_once_then_reads(tmp_path, short, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    train, validation = data.load(MAZE, rows=100, workers=1, progress=False)
    assert (len(train), len(validation)) == (120, 60)  # rounded up to whole trajectories
    assert train.env == MAZE and train.source.startswith(str(tmp_path))
    monkeypatch.setattr(generated, "_generate_parts", None)
    again, _ = data.load(MAZE, rows=100, workers=1)
    np.testing.assert_array_equal(train.observations, again.observations)
    folder = tmp_path / "pointmaze-medium-navigate-v0-rows120-seed0-v1"
    other_task, _ = data.load(MAZE.replace("task1", "task5"), folder=folder)
    np.testing.assert_array_equal(train.observations, other_task.observations)
