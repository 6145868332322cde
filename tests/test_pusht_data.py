"""PushT's demonstrations: coverage, transitions, split, places of the files, commands, the official data."""

import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest

from tests import zarr_stores
from tests.zarr_stores import PUSHT, zipped
from wgflow_rl import data, envs
from wgflow_rl.data import Episodes, pusht, replay_zarr
from wgflow_rl.data.__main__ import main
from wgflow_rl.envs.pusht import GOAL, KEYPOINTS, observe, unscale

pytest.importorskip("zarr", reason="needs the extra rl on Python 3.11 or later")
pytest.importorskip("shapely")

ENVS = ("pusht", "pusht-keypoints")
LENGTHS = (9, 12, 5, 8)
AT_GOAL = np.array([100.0, 100.0, *GOAL])


def moved(*offset):
    """The state AT_GOAL plus an offset of (block x, y, angle)."""
    return AT_GOAL + np.array([0, 0, *offset])


def states(count, seed=0):
    """Random states with the block near the goal."""
    draw = np.random.default_rng(seed).uniform
    angle = draw(-7, 7, (count, 1))
    return np.concatenate([draw(0, 512, (count, 2)), draw(200, 320, (count, 2)), angle], axis=1)


@pytest.fixture
def store(tmp_path):
    return zarr_stores.pusht(tmp_path / PUSHT, LENGTHS)


@pytest.fixture
def published(store, monkeypatch):
    """The digests of the data in `store`, as if they were the published ones."""
    buffer = replay_zarr.read(store, pusht.SHAPES)
    found = {**buffer.arrays, "episode_ends": buffer.episode_ends}
    monkeypatch.setattr(pusht, "SHA256", {name: pusht._sha256(a) for name, a in found.items()})
    return store


def assert_same(one: Episodes, other: Episodes):
    for name, array in vars(one).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


# ---- coverage ----------------------------------------------------------------------------------------------------


def test_a_block_at_the_goal_covers_it_and_a_distant_one_nothing():
    assert pusht.coverage(AT_GOAL) == pytest.approx(1, abs=1e-12)
    assert pusht.coverage(moved(200, 0, 0)) == 0
    assert pusht.coverage(moved(0, 0, 2 * np.pi)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shift", [1, 7, 20])
def test_coverage_after_a_shift_along_the_stem_is_that_of_its_rectangles(shift):
    """The bar keeps 120 (30 - s) and the stem 30 (90 - s); where the stem meets the bar 30 s stay covered."""
    block = moved(-np.sin(GOAL[2]) * shift, np.cos(GOAL[2]) * shift, 0)
    area = 120 * (30 - shift) + 30 * (90 - shift) + 30 * shift
    assert pusht.coverage(block) == pytest.approx(area / 6300, abs=1e-12)


def test_coverage_is_that_of_the_environment():
    env = envs.make("pusht").unwrapped
    env.reset(seed=0)
    for state in states(50):
        env.simulator.block.angle = state[4]
        env.simulator.block.position = tuple(state[2:4])
        assert env.simulator._get_coverage() == pytest.approx(pusht.coverage(state), abs=1e-9)


# ---- transitions -------------------------------------------------------------------------------------------------


def episode(store, number):
    """States, actions and keypoints of an episode of a store."""
    buffer = replay_zarr.read(store, pusht.SHAPES)
    ends = np.concatenate([[0], buffer.episode_ends])
    return {key: a[ends[number] : ends[number + 1]] for key, a in buffer.arrays.items()}


def trajectories(episodes):
    """The rows of each trajectory."""
    return np.split(np.arange(len(episodes)), np.cumsum(episodes.lengths)[:-1])


@pytest.mark.parametrize("env", ENVS)
def test_transitions_are_the_recorded_pairs_of_successive_rows(store, env):
    train, validation = pusht.load(store, env, memory=1e9)
    for episodes, numbers in zip((train, validation), pusht.split(len(LENGTHS)), strict=True):
        assert list(episodes.lengths) == [LENGTHS[i] - 1 for i in numbers]
        for rows, number in zip(trajectories(episodes), numbers, strict=True):
            recorded = episode(store, number)
            state = recorded["state"].astype(float)
            if env == "pusht":
                obs = observe(state, "state").astype(np.float32)
            else:
                points = np.concatenate([recorded["keypoint"].reshape(-1, 18), state[:, :2]], 1)
                obs = (points / 256 - 1).astype(np.float32)
            np.testing.assert_array_equal(episodes.observations[rows], obs[:-1])
            np.testing.assert_array_equal(episodes.next_observations[rows], obs[1:])
            px = unscale(episodes.actions[rows])
            np.testing.assert_allclose(px, recorded["action"][:-1], atol=1e-4)
            reward = np.minimum(pusht.coverage(state[1:]) / 0.95, 1) - 1
            np.testing.assert_allclose(episodes.rewards[rows], reward, atol=1e-6)


def test_rewards_and_masks_describe_the_state_after_the_action(tmp_path):
    """The block is at the goal in row 4 of both episodes, and in row 0, which no action led to."""
    state = states(20).astype(np.float32)
    state[:, 2:4] = 50
    state[[0, 4, 14]] = AT_GOAL
    store = zarr_stores.pusht(tmp_path / PUSHT, (10, 10), state=state)
    train, validation = pusht.load(store, "pusht", memory=1e9)
    for episodes in (train, validation):
        done = np.arange(9) == 3
        np.testing.assert_allclose(episodes.rewards + 1, done, atol=1e-12)
        np.testing.assert_array_equal(episodes.masks, ~done)
        np.testing.assert_array_equal(episodes.terminals, done | (np.arange(9) == 8))


def test_data_and_environment_agree_on_observations_and_actions(store):
    env = envs.make("pusht")
    train, _ = pusht.load(store, "pusht", memory=1e9)
    assert train.widths == (env.observation_space.shape[0], env.action_space.shape[0])
    env_points = envs.make("pusht-keypoints")
    train, _ = pusht.load(store, "pusht-keypoints", memory=1e9)
    assert train.widths == (env_points.observation_space.shape[0], env_points.action_space.shape[0])


# ---- split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (50, 1), (206, 4), (1000, 20)])
def test_two_per_cent_are_held_out_and_the_rest_is_for_training(count, held_out):
    train, validation = pusht.split(count)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == list(range(count))


def test_load_takes_the_wanted_number_of_training_episodes(store):
    train, validation = data.load("pusht", folder=store, episodes=2)
    assert (train.trajectories, validation.trajectories) == (2, 1)
    with pytest.raises(ValueError, match="--data-episodes from 1 to 3"):
        data.load("pusht", folder=store, episodes=0)


def test_a_single_episode_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match=r"replay.zarr: 1 episode; wanted at least 2"):
        pusht.load(zarr_stores.pusht(tmp_path / PUSHT, (9,)), "pusht", memory=1e9)


# ---- files -------------------------------------------------------------------------------------------------------


def test_the_store_is_found_wherever_the_official_archive_may_put_it(store, tmp_path):
    wanted, _ = pusht.load(store, "pusht", memory=1e9)
    nested, archived, single = (tmp_path / name for name in ("nested", "archived", "single"))
    for folder in (nested, archived, single):
        folder.mkdir()
    shutil.copytree(store, nested / "pusht" / PUSHT)
    archive = zipped(store, archived / "pusht.zip", prefix=f"pusht/{PUSHT}/")
    zipped(store, single / f"{PUSHT}.zip")
    own_name = shutil.copytree(store, tmp_path / "own_name")
    for path in (store.parent, nested, nested / "pusht", archived, archive, single, own_name):
        assert_same(pusht.load(path, "pusht", memory=1e9)[0], wanted)


def test_without_the_data_the_error_says_where_they_are_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path / "cache"))
    for folder, at in ((tmp_path, tmp_path), (None, tmp_path / "cache")):
        with pytest.raises(FileNotFoundError) as error:
            data.load("pusht", folder=folder)
        for text in (
            f"download pusht --folder {at}",
            "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
            "--data PATH",
        ):
            assert text in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state": np.zeros((34, 7), np.float32)}, r"data/state .* each of shape \(5,\)"),
        ({"action": np.full((34, 2), 600, np.float32)}, r"actions leave \[-1, 1\]"),
        ({"action": np.full((34, 2), np.nan, np.float32)}, "data/action is not finite in row 0"),
    ],
)
def test_data_of_another_kind_are_refused_by_name(tmp_path, changes, says):
    store = zarr_stores.pusht(tmp_path / PUSHT, LENGTHS, **changes)
    with pytest.raises(ValueError, match=says) as error:
        pusht.load(store, "pusht", memory=1e9)
    assert str(store) in str(error.value)


def test_keypoints_are_needed_only_where_they_are_observed(store):
    shutil.rmtree(store / "data/keypoint")
    pusht.load(store, "pusht", memory=1e9)
    with pytest.raises(ValueError, match="no data/keypoint; it has data/action, data/img, data/st"):
        pusht.load(store, "pusht-keypoints", memory=1e9)


def test_a_download_has_the_published_contents_or_is_not_kept(published, tmp_path):
    """From a folder that stands for a server; what is there already is not asked for."""
    server, here, there = (tmp_path / name for name in ("server", "here", "there"))
    server.mkdir()
    mirror = f"file://{server}"
    zipped(published, server / "pusht.zip", prefix=f"pusht/{PUSHT}/")
    assert pusht.download("pusht", here, mirror=mirror) == here
    assert (here / "pusht.zip").read_bytes() == (server / "pusht.zip").read_bytes()
    pusht.load(here, "pusht", memory=1e9)
    pusht.download("pusht", here, mirror="file:///nowhere")

    other = zarr_stores.pusht(tmp_path / "other.zarr", LENGTHS, seed=1)
    zipped(other, server / "pusht.zip")
    with pytest.raises(ConnectionError, match="its state, action, keypoint are not the"):
        pusht.download("pusht", there, mirror=mirror)
    zipped(published, server / "pusht.zip", leave_out="data/state/1.0")
    with pytest.raises(ConnectionError, match=r"state/1.0 is missing.*by hand"):
        pusht.download("pusht", there, mirror=mirror)
    assert not list(there.iterdir())


# ---- commands ----------------------------------------------------------------------------------------------------


def test_check_says_whether_the_contents_are_the_published_ones(published, capsys):
    main(["check", "pusht", "--folder", str(published)])
    out = capsys.readouterr().out
    assert f"{published} (training, as published)\n" in out
    assert "transitions in 3 trajectories" in out and "transitions in 1 trajectories" in out
    state = published / "data/state"
    (state / "0.0").write_bytes((state / "1.0").read_bytes())
    main(["check", "pusht", "--folder", str(published)])
    assert "(validation, not the published data)\n" in capsys.readouterr().out


def test_info_and_list_find_the_data(published, capsys, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(published.parent))
    monkeypatch.setattr("wgflow_rl.data.__main__.DOWNLOADS", published.parent / "nowhere")
    main(["list"])
    assert f"pusht: pusht and 1 more\n  {published.parent}: " in capsys.readouterr().out
    main(["info", "pusht"])
    out = capsys.readouterr().out
    assert "in 3 trajectories of" in out and out.endswith(f"{published.parent / 'pusht.png'}\n")
    main(["info", "pusht-keypoints", "--folder", str(published)])  # beside the store, not inside
    assert capsys.readouterr().out.endswith(f"{published.parent / 'pusht.png'}\n")
    main(["download", "pusht"])  # there already
    assert "(training, as published)" in capsys.readouterr().out


def test_commands_without_data_and_network_end_in_one_line(tmp_path, capsys, monkeypatch):
    def unreachable(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("wgflow_rl.data.fetch.PAUSE", 0)
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr("wgflow_rl.data.__main__.DOWNLOADS", tmp_path / "nowhere")
    for command, says in (
        (["download", "pusht"], "no route to host"),
        (["info", "pusht"], "python -m wgflow_rl.data download pusht"),
        (["check", "pusht", "--folder", str(tmp_path)], "no pusht_cchi_v7_replay.zarr"),
        (["generate", "pusht"], "no data can be generated"),
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert says in error


# ---- the official data -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(official_data):
    if not (official_data / "pusht").is_dir():
        pytest.skip(f"no pusht in {official_data}")
    return official_data / "pusht"


@pytest.mark.parametrize("env", ENVS)
def test_the_official_data_are_read(official, env):
    train, validation = data.load(env, folder=official)
    assert (train.trajectories, validation.trajectories) == (202, 4)
    assert len(train) + len(validation) == 25_650 - 206
    assert train.source.endswith("(training, as published)")
    for episodes in (train, validation):
        assert np.abs(episodes.observations).max() < 1.05
        assert episodes.rewards.min() == -1
        assert episodes.rewards.max() < 0 and episodes.successes == 0  # coverage is at most .90


def test_the_official_store_has_the_published_contents_and_keypoints(official):
    buffer = replay_zarr.read(pusht.find(official), pusht.SHAPES)
    assert pusht.altered(buffer) == []
    state, keypoint = (buffer.arrays[key].astype(float) for key in ("state", "keypoint"))
    assert KEYPOINTS.shape == keypoint.shape[1:]
    error = np.abs(256 * (observe(state, "keypoints")[:, :18] + 1) - keypoint.reshape(-1, 18))
    assert np.quantile(error.max(1), 0.99) < 0.05  # px


# ---- mirror images -----------------------------------------------------------------------------------------------


def reflected(state):
    """States (x, y, angle) -> (512 - y, 512 - x, pi/2 - angle) in px."""
    x, y = state[..., :4:2], state[..., 1:4:2]
    points = np.stack([512 - y, 512 - x], -1).reshape(*state.shape[:-1], 4)
    return np.concatenate([points, np.pi / 2 - state[..., 4:]], -1)


def test_the_goal_is_its_own_reflection_and_coverage_is_invariant():
    state = states(50)
    np.testing.assert_allclose(reflected(AT_GOAL)[2:], GOAL)
    np.testing.assert_allclose(pusht.coverage(reflected(state)), pusht.coverage(state), atol=1e-12)


def test_a_mirrored_demonstration_has_the_observations_and_targets_of_mirrored_states(store):
    data, _ = pusht.load(store, "pusht", memory=1e9)
    mirrored = pusht.mirrored(data)
    for rows, number in zip(trajectories(data), pusht.split(len(LENGTHS))[0], strict=True):
        recorded = episode(store, number)
        state = reflected(recorded["state"].astype(float))
        np.testing.assert_allclose(
            mirrored.observations[rows], observe(state[:-1], "state"), atol=1e-5
        )
        np.testing.assert_allclose(
            mirrored.next_observations[rows], observe(state[1:], "state"), atol=1e-5
        )
        target = 512 - recorded["action"][:-1, ::-1]
        np.testing.assert_allclose(unscale(mirrored.actions[rows]), target, atol=1e-3)
    np.testing.assert_array_equal(mirrored.rewards, data.rewards)
    assert_same(pusht.mirrored(mirrored), data)


def test_only_the_state_can_be_mirrored(store):
    keypoints, _ = pusht.load(store, "pusht-keypoints", memory=1e9)
    with pytest.raises(ValueError, match="--mirror needs the observations of pusht"):
        pusht.mirrored(keypoints)
    with pytest.raises(ValueError, match="--mirror needs a task with a mirror symmetry"):
        data.load("pointmaze-medium-navigate-singletask-task1-v0", rows=200, mirror=True)
