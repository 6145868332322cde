"""Robomimic: environments that repeat, demonstrations that agree with them, files old and new, robomimic's reader."""

import json
import sys

import numpy as np
import pytest
import torch

from wgflow_rl import data, envs
from wgflow_rl.data import generated, robomimic
from wgflow_rl.data.generated import controllers, demonstrations
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.guard import Guard
from wgflow_rl.envs.robomimic import CONTROLLER, KEYS, Robosuite, env_args
from wgflow_rl.training.rollout import Collector

h5py = pytest.importorskip("h5py")
pytest.importorskip("robosuite")

LIFT = "lift-mh-low_dim"
SUITES = ("lift", "can", "square")
CLEAN = controllers.OPERATORS[0]


@pytest.fixture(scope="session")
def made():
    """One environment for each task."""
    return {suite: envs.make(f"{suite}-mh-low_dim") for suite in SUITES}


@pytest.fixture(scope="session")
def parts():
    """Two parts of a single demonstration or more."""
    part = demonstrations.prepare(LIFT)
    return [part(seed, 1) for seed in (1, 2)]


@pytest.fixture
def file(tmp_path, parts):
    path = tmp_path / "lift" / "mh" / "low_dim_v15.hdf5"
    demonstrations.write([path], LIFT, [parts[0]], [parts[1]])
    return path


def old_args(**controller):
    """What a file from before robosuite 1.5 says."""
    args = env_args("lift") | {"env_version": "1.4.1"}
    arm = dict(args["env_kwargs"]["controller_configs"]["body_parts"]["right"])
    for name in ("input_type", "input_ref_frame", "gripper"):
        del arm[name]
    kwargs = {k: v for k, v in args["env_kwargs"].items() if k != "lite_physics"}
    kwargs["controller_configs"] = arm | {"control_delta": True} | controller
    return args | {"env_kwargs": kwargs}


def with_kwargs(**kwargs):
    """What a file says whose simulator had other settings."""
    args = env_args("lift")
    return args | {"env_kwargs": args["env_kwargs"] | kwargs}


def rewrite(path, change):
    with h5py.File(path, "r+") as stored:
        change(stored)


def delete(name):
    return lambda stored: stored.__delitem__(name)


def replace(name, change):
    """A change of an array, given a function of its contents or the new ones."""

    def apply(stored):
        array = change(stored[name][:]) if callable(change) else change
        del stored[name]
        stored[name] = array

    return apply


def record(args):
    """A change of what a file says of its environment."""
    return lambda stored: stored["data"].attrs.__setitem__("env_args", json.dumps(args))


def test_spellings_of_the_same_simulator_are_read(file):
    for kwargs in (
        {"robots": "Panda"},
        {"gripper_types": "PandaGripper"},
        {"gripper_types": ["default"]},
    ):
        rewrite(file, record(with_kwargs(**kwargs)))
        assert len(robomimic.read(file, LIFT))


def episode(env, seed, actions):
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


def shaky(steps, seed=0):
    noise = np.random.default_rng(seed).normal(size=(steps, 7))
    return np.cumsum(0.3 * noise, 0).clip(-1, 1).astype(np.float32)


# Environments


def test_names_are_known_and_nearly_right_ones_are_answered():
    assert {f"{suite}-mh-low_dim" for suite in SUITES} <= set(envs.names())
    assert envs.parse(LIFT).suite == "lift"
    with pytest.raises(ValueError, match=f"Nearest: .*{LIFT}"):
        envs.parse("lift-mh-lowdim")


@pytest.mark.parametrize("suite", SUITES)
def test_an_episode_is_a_function_of_seed_and_actions(suite, made):
    env, actions = made[suite], shaky(12)
    first = episode(env, 7, actions)
    episode(env, 8, actions[:3])  # whatever happened before
    np.testing.assert_array_equal(first, episode(env, 7, actions))
    assert first.dtype == np.float32 and first.shape[1] == (19 if suite == "lift" else 23)
    assert env.action_space.shape == (7,)
    assert not np.array_equal(first[0], env.reset(seed=8)[0])


def test_another_environment_plays_the_same_episode_old_physics_or_new(made, monkeypatch):
    before = with_kwargs(lite_physics=False)  # as before robosuite 1.5
    monkeypatch.setattr(envs.robomimic, "env_args", lambda suite: before)
    old, actions = Robosuite("lift"), shaky(12)
    np.testing.assert_array_equal(
        episode(made["lift"], 3, actions), episode(old, 3, actions).astype(np.float32)
    )


@pytest.mark.parametrize("suite", ["can", "square"])
def test_the_first_observation_knows_where_the_object_is(suite, made):
    first = made[suite].reset(seed=1)[0]
    hand, relative, thing = first[:3], first[9:12], first[16:19]
    assert np.linalg.norm(relative) == pytest.approx(np.linalg.norm(thing - hand), rel=1e-4)


def test_reward_and_success_describe_the_state_after_the_action(made):
    env = made["lift"]
    env.reset(seed=0)
    still = np.zeros(7)
    assert env.step(still)[1:4] == (-1.0, False, False)
    simulator = env.unwrapped.simulator
    raised = simulator.sim.data.get_joint_qpos("cube_joint0").copy()
    raised[2] = 1.0
    simulator.sim.data.set_joint_qpos("cube_joint0", raised)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, True)


def test_the_time_limit_is_the_tasks(made):
    assert [made[suite].get_wrapper_attr("_max_episode_steps") for suite in SUITES] == [
        300,
        300,
        400,
    ]


def test_a_collector_continues_the_episode_in_progress(made):
    actions = iter(shaky(40))
    act = lambda obs, generator: torch.as_tensor(np.stack([[next(actions) for _ in range(5)]]))
    first = Collector([made["lift"]], seed=4, guard=Guard("lift"))
    for _ in range(8):
        first.step(act, torch.Generator())
    here, (tensors, state) = first.players[0].obs, first.state()
    again = Collector([made["lift"]], seed=4, guard=Guard("lift"))
    again.load_state(tensors, state)
    np.testing.assert_array_equal(here, again.players[0].obs)


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    assert LIFT in envs.names()
    with pytest.raises(RuntimeError, match=r"extra robomimic .*\[robomimic\]"):
        envs.make(LIFT)
    with pytest.raises(RuntimeError, match="extra robomimic"):
        generated.generate(LIFT, root=tmp_path, rows=1)
    assert not list(tmp_path.iterdir())


# Demonstrations


@pytest.mark.parametrize("suite", SUITES)
def test_a_demonstration_is_what_its_environment_plays(suite, made):
    env = made[suite]
    demo = demonstrations.attempt(env.unwrapped, suite, CLEAN, seed=5)
    observation = env.reset(seed=5)[0]
    for t, action in enumerate(demo["actions"].astype(np.float32)):
        np.testing.assert_array_equal(
            observation, np.concatenate([demo[f"obs/{key}"][t] for key in KEYS]).astype(np.float32)
        )
        observation, reward, terminated, _, _ = env.step(action)
        assert (reward + 1, terminated) == (demo["rewards"][t], demo["dones"][t])
    assert terminated  # the controller solves its task


def test_a_part_does_not_depend_on_those_before_it(parts):
    again = demonstrations.prepare(LIFT)(2, 1)
    assert again.keys() == parts[1].keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, parts[1][name], err_msg=name)


def test_the_same_parts_give_the_same_bytes(file, parts, tmp_path):
    turned = [{name: part[name] for name in reversed(part)} for part in parts]
    demonstrations.write([tmp_path / "again.hdf5"], LIFT, [turned[0]], [turned[1]])
    assert file.read_bytes() == (tmp_path / "again.hdf5").read_bytes()


def test_generated_demonstrations_are_read_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "LENGTH", 20)
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    train, validation = data.load(LIFT, rows=20, workers=1, progress=False)
    assert len(train) >= 20 and train.successes == train.trajectories
    assert validation.source.endswith("(valid)")
    monkeypatch.setattr(generated, "_generate_parts", None)
    again, _ = data.load(LIFT, rows=20, workers=1)
    np.testing.assert_array_equal(train.actions, again.actions)


# Files


def test_rewards_and_masks_are_the_protocols(file, parts):
    train = robomimic.read(file, LIFT)
    np.testing.assert_array_equal(train.rewards, parts[0]["rewards"] - 1)
    np.testing.assert_array_equal(train.masks, 1 - parts[0]["dones"])
    np.testing.assert_array_equal(train.lengths, parts[0]["lengths"])
    inside = ~train.terminals[:-1]
    np.testing.assert_array_equal(
        train.next_observations[:-1][inside], train.observations[1:][inside]
    )
    valid = robomimic.read(file, LIFT, "valid")
    assert len(train) + len(valid) == sum(len(part["rewards"]) for part in parts)


def test_robomimics_own_reader_returns_the_same_chunks(file):
    pytest.importorskip("robomimic")
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS)}})
    chunk = 5
    theirs = SequenceDataset(
        str(file), obs_keys=KEYS, dataset_keys=("actions", "rewards", "dones"), seq_length=chunk,
        hdf5_cache_mode="all", hdf5_use_swmr=False, filter_by_attribute="train",
    )  # fmt: skip
    train = robomimic.read(file, LIFT)
    ours = Replay(train, capacity=len(train)).chunks(
        torch.arange(len(train)), chunk=chunk, gamma=0.9
    )
    assert len(theirs) == len(train)
    for i in range(len(train)):
        theirs_i = theirs[i]
        obs = np.concatenate([theirs_i["obs"][key] for key in KEYS], axis=1).astype(np.float32)
        next_obs = np.concatenate([theirs_i["next_obs"][key] for key in KEYS], axis=1).astype(
            np.float32
        )
        np.testing.assert_array_equal(ours.actions[i], theirs_i["actions"].astype(np.float32))
        np.testing.assert_array_equal(ours.obs[i], obs[0])
        np.testing.assert_array_equal(ours.next_obs[i], next_obs[-1])
        valid = ours.valid[i].numpy()
        rewards = (theirs_i["rewards"].ravel() - 1) * valid * 0.9 ** np.arange(chunk)
        assert ours.returns[i] == pytest.approx(rewards.sum(), rel=1e-6)
        assert (ours.discount[i] == 0) == bool(theirs_i["dones"].any())
    theirs.close_and_delete_hdf5_handle()


def test_files_from_before_robosuite_1_5_are_read_too(file):
    assert robomimic._arm_controller(old_args()) == CONTROLLER
    new = robomimic.read(file, LIFT)
    old = file.rename(file.with_name("low_dim_v141.hdf5"))
    rewrite(old, record(old_args()))
    found, _ = data.load(LIFT, folder=file.parents[2])
    np.testing.assert_array_equal(new.actions, found.actions)


def test_a_file_without_masks_is_split_by_number(tmp_path, parts):
    path = tmp_path / "low_dim.hdf5"
    demonstrations.write([path], LIFT, [parts[0]] * 10, [])
    rewrite(path, delete("mask"))
    count = 10 * len(parts[0]["lengths"])
    train, validation = robomimic.contents(tmp_path, LIFT)
    assert (train.trajectories, validation.trajectories) == (count - count // 10, count // 10)


OBJECT, ACTIONS = "data/demo_0/obs/object", "data/demo_0/actions"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete(OBJECT), "demo_0 has no obs/object"),
        (replace(OBJECT, lambda a: np.nan * a), "observations is not finite"),
        (replace(OBJECT, lambda a: a[:, :9]), "wide|the same"),
        (replace(ACTIONS, lambda a: a[:-1]), r"demo_0: actions has \d+ rows, wanted \d+"),
        (replace(ACTIONS, lambda a: 2 * a), "actions leave"),
        (replace(ACTIONS, lambda a: a.astype("S")), "wanted numbers"),
        (replace("data/demo_0/rewards", lambda a: a / 2 + 0.1), "wanted sparse rewards, 0 and 1"),
        (lambda stored: stored.create_group("data/other"), "data has 'other'"),
        (replace("mask/train", np.array([b"demo_99"])), "names demo_99, which is not in data"),
        (delete("mask/valid"), "has mask/train but no mask/valid"),
        (
            lambda stored: replace("mask/valid", stored["mask/train"][:])(stored),
            "for training and for validation",
        ),
        (
            lambda stored: stored["data"].attrs.__delitem__("env_args"),
            "not a robomimic data set, or is damaged",
        ),
        (record(env_args("can")), "recorded in PickPlaceCan, but lift-mh-low_dim is Lift"),
        (record(old_args(control_delta=False)), "input_type is absolute; here it is delta"),
        *(
            (record(with_kwargs(**kwargs)), f"recorded with {message}")
            for kwargs, message in (
                ({"control_freq": 10}, "control_freq 10; here it is 20"),
                ({"robots": ["Sawyer"]}, "robots 'Sawyer'; here it is 'Panda'"),
                ({"gripper_types": "RethinkGripper"}, "gripper_types 'RethinkGripper'"),
                ({"reward_shaping": True}, "reward_shaping True"),
            )
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(file, change, message):
    rewrite(file, change)
    with pytest.raises(ValueError, match=message) as error:
        list(robomimic.contents(file, LIFT))
    assert str(file) in str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_cut_file_is_refused(file, part):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="or is damaged"):
        list(robomimic.contents(file, LIFT))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_file_altered_at_random_is_read_or_refused_by_name(file):
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    said = []
    for _ in range(60):
        at, length = int(rng.integers(len(whole))), int(rng.integers(1, 200))
        file.write_bytes(whole[:at] + rng.bytes(length) + whole[at + length :])
        try:
            list(robomimic.contents(file, LIFT))
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 5
    assert all(str(file) in message for message in said)


def test_missing_files_are_named_beside_those_found(file, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no can/mh/low_dim_v15.hdf5; found lift/mh/low_dim_v15.hdf5"
    ):
        data.load("can-mh-low_dim", folder=tmp_path)


def test_a_download_is_read_before_it_gets_its_name(file, tmp_path):
    """From a folder that stands for a server; what is there already is not asked for."""
    server = tmp_path / "server" / "lift" / "mh"
    server.mkdir(parents=True)
    content = file.read_bytes()
    (server / robomimic.OFFICIAL).write_bytes(content)
    mirror, here = f"file://{tmp_path}/server", tmp_path / "here"
    assert robomimic.download(LIFT, here, mirror=mirror) == here
    assert robomimic.find(here, LIFT).read_bytes() == content
    assert robomimic.download(LIFT, here, mirror="file:///nowhere") == here

    (server / robomimic.OFFICIAL).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConnectionError, match=r"is damaged.*data generate lift-mh-low_dim"):
        robomimic.download(LIFT, tmp_path / "there", mirror=mirror)
    assert not list((tmp_path / "there").rglob("*.hdf5*"))
    with pytest.raises(ConnectionError, match="by hand"):
        robomimic.download("can-mh-low_dim", here, mirror=mirror)
