"""PushT's environment: geometry, controller, starts and reward of the published protocol; official episodes."""

import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from wgflow_rl import envs
from wgflow_rl.envs import pusht
from wgflow_rl.utils.cli import UserError

if find_spec("gym_pusht") is None:
    pytest.skip("needs gym-pusht", allow_module_level=True)

NAMES = ("pusht", "pusht-keypoints")
AWAY = (40.0, 470.0)  # an agent that touches no block near the goal
STORE = "pusht/pusht_cchi_v7_replay.zarr"

made = functools.cache(envs.make)


@pytest.fixture(params=NAMES)
def either(request):
    return made(request.param)


@pytest.fixture
def env():
    return made("pusht")


@pytest.fixture(scope="session")
def official(official_data):
    """Arrays of the official demonstrations: state [T, 5], keypoint [T, 9, 2], action [T, 2], ends [E]."""
    zarr = pytest.importorskip("zarr")
    if not (official_data / STORE).is_dir():
        pytest.skip(f"no {STORE} in {official_data}")
    group = zarr.open_group(str(official_data / STORE), mode="r")
    arrays = [group[f"data/{name}"][:] for name in ("state", "keypoint", "action")]
    return [*(array.astype(np.float64) for array in arrays), group["meta/episode_ends"][:]]


def start(env, state):
    return env.reset(seed=0, options={"state": state})


def hold(env, agent=AWAY):
    """Take a step that leaves the agent where it is."""
    return env.step(pusht.scale(agent))


def shifted(distance):
    """Goal pose, moved by `distance` px along the stem."""
    x, y, angle = pusht.GOAL
    return (
        *AWAY,
        x - distance * np.sin(angle),
        y + distance * np.cos(angle),
        angle,
    )


def chase(env, seed, steps):
    """Actions [steps, 2] that push the block about, from reset(seed=seed)."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    actions = []
    for _ in range(steps):
        block = info["state"][2:4] + rng.normal(size=2) * 40
        actions.append(pusht.scale(block).clip(-1, 1).astype(np.float32))
        info = env.step(actions[-1])[4]
    return np.stack(actions)


def states(env, seed, actions):
    """States [T + 1, 5] in the simulator's own precision."""
    return np.stack([env.reset(seed=seed)[1]["state"], *(env.step(a)[4]["state"] for a in actions)])


def digest(seed=3, steps=120):
    """Hash of the states of an episode with many contacts; printed by another process too."""
    env = envs.make("pusht")
    return hashlib.sha256(states(env, seed, chase(env, seed, steps)).tobytes()).hexdigest()


# ---- names and observations --------------------------------------------------------------------------------------


def test_names_are_known_and_nearly_right_ones_are_answered():
    assert set(NAMES) == set(pusht.NAMES) < set(envs.names())
    assert {envs.parse(name).dataset for name in NAMES} == {"pusht"}
    with pytest.raises(ValueError, match="Nearest: pusht"):
        envs.parse("push-t")


def test_observations_are_float32_and_in_their_space(either):
    for observation in (either.reset(seed=0)[0], either.step(np.zeros(2))[0]):
        assert observation.dtype == np.float32
        assert observation.shape == {"pusht": (6,), "pusht-keypoints": (20,)}[either.name]
        assert either.observation_space.contains(observation)


def test_keypoints_are_points_of_the_block(either):
    observation, info = either.reset(seed=1)
    block = either.unwrapped.simulator.block
    points = np.array([block.local_to_world(tuple(point)) for point in pusht.KEYPOINTS])
    agent, pose, angle = info["state"][:2], info["state"][2:4], info["state"][4]
    wanted = {
        "pusht": [*pusht.scale([*agent, *pose]), np.cos(angle), np.sin(angle)],
        "pusht-keypoints": pusht.scale([*points.ravel(), *agent]),
    }
    np.testing.assert_allclose(observation, wanted[either.name], atol=1e-6)


@pytest.mark.parametrize("kind", ["state", "keypoints"])
def test_observations_of_many_states_are_those_of_each_and_have_no_seam_in_the_angle(kind):
    many = np.random.default_rng(0).uniform(0, 512, (4, 3, 5))
    observed = pusht.observe(many, kind)
    np.testing.assert_array_equal(observed[2, 1], pusht.observe(many[2, 1], kind))
    np.testing.assert_allclose(
        pusht.observe(many - 2 * np.pi * np.eye(5)[4], kind), observed, atol=1e-9
    )


def test_scale_maps_the_arena_onto_the_unit_box_and_unscale_inverts_it():
    px = np.linspace(0, 512, 9)
    np.testing.assert_array_equal(pusht.scale(px)[[0, -1]], [-1, 1])
    np.testing.assert_array_equal(pusht.unscale(pusht.scale(px)), px)


# ---- reward ------------------------------------------------------------------------------------------------------


def test_the_block_covers_6300_square_pixels(env):
    env.reset(seed=0)
    assert sum(shape.area for shape in env.unwrapped.simulator.block.shapes) == pytest.approx(6300)


@pytest.mark.parametrize("distance", [0.0, 2.5, 2.75, 20.0, 27.5625])
def test_the_reward_of_a_shifted_block_has_a_closed_form(env, distance):
    """Moved by d <= 30 along its stem, the block covers 6300 - 120 d of 6300 px²: coverage .475 gives reward .5."""
    start(env, shifted(distance))
    _, reward, terminated, _, info = hold(env)
    coverage = 1 - 120 * distance / 6300
    assert info["coverage"] == pytest.approx(coverage, abs=1e-9)
    assert info["score"] == pytest.approx(min(coverage / 0.95, 1), abs=1e-9)
    assert reward + 1 == pytest.approx(info["score"], abs=1e-12)
    assert terminated == info["success"] == (coverage > 0.95)


def test_a_block_upside_down_or_far_away_is_no_success(env):
    x, y, angle = pusht.GOAL
    for pose in ((x, y, angle + np.pi), (x + 160, y - 40, angle)):
        start(env, (*AWAY, *pose))
        _, reward, terminated, _, info = hold(env)
        assert reward + 1 < 0.95 and not terminated and not info["success"]


def test_the_score_is_the_running_maximum_of_the_reward_and_300_steps_end_an_episode(env):
    _, info = env.reset(seed=2)
    assert info["score"] == 0
    rewards, scores = [], []
    for step in range(1, 301):
        _, reward, terminated, truncated, info = env.step(pusht.scale(info["state"][2:4]))
        rewards.append(reward + 1)
        scores.append(info["score"])
        assert not terminated and truncated == (step == 300)
    np.testing.assert_allclose(scores, np.maximum.accumulate(rewards), atol=1e-12)
    assert len(set(scores)) > 1 and scores[-1] > rewards[-1]
    assert env.reset(seed=2)[1]["score"] == 0


# ---- dynamics ----------------------------------------------------------------------------------------------------


def test_the_controller_is_critically_damped(env):
    """e'' = -100 e - 20 e' leaves 11 exp(-10) of an error after 1 s, up to first order in the physics step."""
    simulator, excess = env.unwrapped.simulator, []
    for divisor in (1, 2, 4):
        start(env, shifted(0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "dt", 0.01 / divisor)
            for _ in range(10):
                *_, info = hold(env, (140.0, 470.0))
        left = (140 - info["state"][0]) / 100
        excess.append(left / (11 * np.exp(-10)) - 1)
    assert excess[0] / excess[1] == pytest.approx(2, rel=0.05)
    assert 2 * excess[2] - excess[1] == pytest.approx(0, abs=0.01)  # extrapolated to step 0


def test_an_episode_is_a_function_of_seed_and_actions(either):
    actions = chase(either, 7, 60)
    first = states(either, 7, actions)
    assert np.ptp(first[:, 2:], axis=0).min() > 0.1  # the block was pushed and turned
    chase(either, 8, 5)  # whatever happened before
    np.random.random(3)  # noqa: NPY002
    for other in (either, envs.make(either.name)):
        np.testing.assert_array_equal(first, states(other, 7, actions))
    assert not np.array_equal(first[0], states(either, 8, [])[0])


def test_an_episode_is_bit_identical_in_another_process():
    code = "from tests.test_pusht_env import digest; print(digest())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert child.stdout.strip() == digest()


def test_a_mirrored_episode_from_the_symmetric_start_earns_the_same(env):
    """(x, y, angle) -> (512 - y, 512 - x, pi/2 - angle) maps goal, block and start to themselves."""
    state = np.array(pusht.SYMMETRIC_START)
    np.testing.assert_allclose(mirrored(state), state, atol=1e-9)
    route = [(80, 250), (180, 120), (300, 150), (280, 200), (260, 240), (240, 260)]  # px
    route = np.repeat(np.array(route, float), 8, axis=0)
    played = []
    for targets in (route, 512 - route[:, ::-1]):
        start(env, state)
        answers = [env.step(pusht.scale(target)) for target in targets]
        played.append([(answer[1], answer[4]["state"]) for answer in answers])
    for (reward, one), (other_reward, other) in zip(*played, strict=True):
        assert reward == pytest.approx(other_reward, abs=1e-3)
        np.testing.assert_allclose(mirrored(one), other, atol=0.1)
    assert np.abs(one - state)[2:4].max() > 5  # the block was pushed


def mirrored(state):
    x, y, block_x, block_y, angle = state
    return np.array(
        [512 - y, 512 - x, 512 - block_y, 512 - block_x, (np.pi / 2 - angle) % (2 * np.pi)]
    )


# ---- starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [-1, 0, 1])
def test_a_start_is_the_given_state_whatever_happened_before(env, turns):
    chase(env, 0, 10)
    state = np.array([100.0, 120.0, 300.0, 310.0, 2.5])
    observation, info = start(env, [*state[:4], state[4] + 2 * np.pi * turns])
    np.testing.assert_allclose(info["state"], state, atol=1e-9)
    np.testing.assert_allclose(observation, pusht.observe(state, "state"), atol=1e-6)
    _, _, _, _, after = hold(env, state[:2])  # agent and block are at rest
    np.testing.assert_allclose(after["state"], state, atol=1e-9)


def test_published_starts_turn_the_block_about_its_centre_of_gravity(env):
    far = 0
    for seed in range(100_000, 100_050):
        draw = np.random.RandomState(seed)
        agent = draw.randint(50, 450), draw.randint(50, 450)
        centre = np.array([draw.randint(100, 400), draw.randint(100, 400) + 45])
        angle = draw.randn() * 2 * np.pi - np.pi
        state = env.reset(seed=seed)[1]["state"]
        np.testing.assert_array_equal(state[:2], agent)
        if np.linalg.norm(centre - agent) > 110 and np.abs(centre - 256).max() < 150:
            position = centre - 45 * np.array([-np.sin(angle), np.cos(angle)])
            np.testing.assert_allclose(state[2:], [*position, angle % (2 * np.pi)], atol=1e-9)
            far += 1
    assert far > 20


@pytest.mark.parametrize("state", [(1, 2, 3, 4), (1, 2, 3, 4, np.nan), np.zeros((1, 5))])
def test_a_start_that_is_no_state_is_refused(env, state):
    with pytest.raises(ValueError, match="wanted five finite numbers"):
        start(env, state)


# ---- official data -----------------------------------------------------------------------------------------------


def test_keypoints_are_those_of_the_official_data(official):
    state, keypoint, *_ = official
    moved = pusht.observe(state, "keypoints")[:, :18].reshape(-1, 9, 2)
    errors = np.abs(pusht.unscale(moved) - keypoint).max((1, 2))
    assert np.median(errors) < 2e-4
    assert errors.max() < 2.5  # stored keypoints of a moving block are a physics step late


def test_official_episodes_replay(official, env):
    state, _, action, ends = official
    starts = [0, *ends[:-1]]
    errors, scores = [], []
    for first, end in list(zip(starts, ends, strict=True))[::20]:
        reached = [start(env, state[first])[1]]
        for px in action[first:end]:
            reached.append(env.step(pusht.scale(px))[4])
            if reached[-1]["success"]:
                break
        path = np.stack([info["state"] for info in reached])[: end - first, :4]
        errors.append(np.abs(path - state[first : first + len(path), :4]).max(axis=1))
        scores.append(reached[-1]["score"])
    assert np.median(np.concatenate(errors)) < 0.1
    assert 0.92 < np.mean(scores) <= 1


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_pictures_show_the_goal_and_no_target_of_an_earlier_episode():
    env = envs.make("pusht", render_mode="rgb_array", width=96, height=80)
    env.reset(seed=100_000)
    first = env.render()
    assert first.shape == (80, 96, 3) and first.dtype == np.uint8
    assert (first == (144, 238, 144)).all(-1).sum() > 50  # the goal's light green
    env.step(np.array([0.5, -0.5]))
    picture = env.render().astype(int)
    red = np.argwhere(picture[..., 0] - picture[..., 1:].max(-1) > 80)  # the target's cross
    np.testing.assert_allclose(red.mean(0), [20, 72], atol=1)  # row, column
    before = states(env, 0, [np.zeros(2)] * 2)
    env.render()
    env.reset(seed=100_000)
    np.testing.assert_array_equal(env.render(), first)
    np.testing.assert_array_equal(states(env, 0, [np.zeros(2)] * 2), before)


def test_a_chosen_video_driver_is_kept(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    pusht.import_gym_pusht()
    assert os.environ["SDL_VIDEODRIVER"] == "x11"
    monkeypatch.delenv("SDL_VIDEODRIVER")
    pusht.import_gym_pusht()
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"


# ---- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gym", "physics"), [("0.2.0", "6.11.1"), ("0.1.8", "7.0.1"), ("1.0", "8.1")]
)
def test_other_versions_are_refused_by_name(monkeypatch, gym, physics):
    monkeypatch.setattr(pusht, "version", {"gym-pusht": gym, "pymunk": physics}.__getitem__)
    with pytest.raises(UserError, match=f"gym-pusht {gym} and pymunk {physics}.*pip install"):
        envs.require("pusht")


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pusht, "version", version)
    with pytest.raises(UserError, match='gym-pusht.*pip install "gym-pusht'):
        envs.make("pusht-keypoints")
