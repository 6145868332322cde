"""Chunks are played open loop, an episode in progress survives a restart, and evaluation plays what was asked."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.walk import Recorder, Walk, rng
from wgflow_rl import envs
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training.rollout import EVAL_SEEDS, TRAIN_SEEDS, Collector, evaluate, reset_seed

GUARD = Guard("walk")
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


@given(steps=st.integers(1, 25), chunk=st.integers(1, 5), limit=st.integers(1, 8))
def test_a_chunk_is_executed_open_loop_and_dropped_when_the_episode_ends(steps, chunk, limit):
    env, policy, generator = Walk(limit), Recorder(chunk), rng()
    collector = Collector([env], seed=3, guard=GUARD)
    rows = [collector.step(policy, generator) for _ in range(steps)]
    # once a chunk, and anew in every episode
    asked = [t for t in range(steps) if t % limit % chunk == 0]
    assert len(policy.given) == len(asked)
    for call, t in enumerate(asked):
        np.testing.assert_array_equal(policy.seen[call][0].numpy(), rows[t]["obs"])
        last = min(t + chunk, t - t % limit + limit, steps)
        np.testing.assert_array_equal(
            policy.given[call][0, : last - t].numpy(), [r["actions"] for r in rows[t:last]]
        )


@given(episodes=st.integers(1, 9), pool=st.integers(1, 4), first=st.integers(0, 99))
def test_start_states_of_an_evaluation_are_the_same_every_time_if_asked_for(episodes, pool, first):
    """reset(seed=eval_seed), reset(seed=eval_seed + 1), ..., whatever came before: the protocol of PushT."""
    walkers = [Walk() for _ in range(pool)]
    settings = {"episodes": episodes, "seed": 1, "first_episode": first, "guard": GUARD}
    evaluate(Recorder(2), walkers, **settings, eval_seed=100)
    assert sorted(seed for env in walkers for seed in env.seeds) == list(range(100, 100 + episodes))


class Scored(Walk):
    """A walk whose score, of the last step, is a function of the seed."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        done = terminated or truncated
        return obs, reward, terminated, truncated, info | {"score": self.seeds[-1] / 10 * done}


@pytest.mark.parametrize("pool", [1, 3])
def test_the_score_of_an_evaluation_is_the_mean_of_the_last_scores_of_its_episodes(pool):
    settings = {"episodes": 4, "seed": 1, "first_episode": 0, "guard": GUARD, "eval_seed": 2}
    scored = evaluate(Recorder(2), [Scored() for _ in range(pool)], **settings)
    np.testing.assert_allclose(scored.scores, [0.2, 0.3, 0.4, 0.5])
    assert scored.score == pytest.approx(0.35)
    plain = evaluate(Recorder(2), [Walk(goal=3) for _ in range(pool)], **settings)
    assert plain.scores is None and plain.score == 1


def test_rows_join_inside_an_episode_and_part_where_it_ends():
    env = Walk(limit=4)
    collector, generator = Collector([env], seed=0, guard=GUARD), rng()
    rows = [collector.step(Recorder(3), generator) for _ in range(9)]
    for before, after in pairwise(rows):
        joined = np.array_equal(before["next_obs"], after["obs"])
        assert joined != before["terminals"]
    assert [i for i, row in enumerate(rows) if row["terminals"]] == [3, 7]
    # the last one, not that of the reset
    assert [row["next_obs"][1] for row in rows[:5]] == [1, 2, 3, 4, 1]
    assert env.seeds == [reset_seed(0, TRAIN_SEEDS, i) for i in range(3)]


@pytest.mark.parametrize(("goal", "mask"), [(2, 0.0), (10, 1.0)], ids=["reached", "out of time"])
def test_only_the_end_of_the_task_stops_the_bootstrap(goal, mask):
    collector, generator = Collector([Walk(limit=3, goal=goal)], seed=0, guard=GUARD), rng()
    rows = [collector.step(Recorder(2), generator) for _ in range(min(goal, 3))]
    assert rows[-1]["terminals"]
    assert rows[-1]["masks"] == mask
    assert all(row["masks"] == 1 and not row["terminals"] for row in rows[:-1])


def assert_continues(make, policy, steps, more, count=1):
    """A collector rebuilt from its state plays on as the one that was never stopped."""
    collector, generator = Collector([make() for _ in range(count)], seed=5, guard=GUARD), rng(1)
    for _ in range(steps):
        collector.step(policy, generator)
    tensors, state = collector.state()
    tensors, drawn = {k: t.clone() for k, t in tensors.items()}, generator.get_state()
    expected = [collector.step(policy, generator) for _ in range(more)]

    other, generator = Collector([make() for _ in range(count)], seed=5, guard=GUARD), rng(2)
    other.load_state(tensors, state)
    generator.set_state(drawn)
    for row, wanted in zip(
        [other.step(policy, generator) for _ in range(more)], expected, strict=True
    ):
        for name, value in wanted.items():
            np.testing.assert_array_equal(
                row[name], value, err_msg=name, strict=name in ("obs", "actions")
            )


@given(
    steps=st.integers(0, 20),
    chunk=st.integers(1, 5),
    limit=st.integers(1, 8),
    count=st.integers(1, 3),
)
def test_a_restored_collector_continues_bit_for_bit(steps, chunk, limit, count):
    assert_continues(lambda: Walk(limit), Recorder(chunk), steps, more=12, count=count)


@pytest.mark.parametrize("steps", [10, 23], ids=["between chunks", "inside a chunk"])
def test_a_restored_collector_continues_bit_for_bit_in_the_simulator(steps):
    def policy(obs, generator):  # depends on the state, so that an error would grow
        return torch.tanh(obs.sum() + torch.randn(1, 5, 2, generator=generator))

    assert_continues(lambda: envs.make(MAZE), policy, steps, more=30)


@given(
    count=st.integers(1, 4),
    chunk=st.integers(1, 5),
    limit=st.integers(1, 8),
    steps=st.integers(1, 40),
)
def test_environments_take_turns_and_play_episodes_of_their_own(count, chunk, limit, steps):
    envs = [Walk(limit) for _ in range(count)]
    policy, generator = Recorder(chunk), rng()
    collector = Collector(envs, seed=3, guard=GUARD)
    rows = [collector.step(policy, generator) for _ in range(steps)]
    seeds = [seed for env in envs for seed in env.seeds]
    assert len(set(seeds)) == len(seeds)
    for i, env in enumerate(envs):
        own = rows[i::count]
        assert [float(row["actions"][0]) for row in own] == env.actions
        for before, after in pairwise(own):
            assert np.array_equal(before["next_obs"], after["obs"]) != before["terminals"]


def test_one_call_of_the_policy_serves_every_environment_that_has_no_chunk_left():
    policy, generator = Recorder(3), rng()
    collector = Collector([Walk(100) for _ in range(4)], seed=0, guard=GUARD)
    for _ in range(2 * 3 * 4):
        collector.step(policy, generator)
    assert [len(obs) for obs in policy.seen] == [4, 4]


@given(pool=st.integers(1, 7), episodes=st.integers(1, 9), chunk=st.integers(1, 4))
def test_exactly_the_episodes_asked_for_are_played_on_any_pool(pool, episodes, chunk):
    walks = [Walk(limit=3 + i) for i in range(pool)]
    result = evaluate(
        Recorder(chunk), walks, episodes=episodes, seed=4, first_episode=100, guard=GUARD
    )
    assert sorted(seed for walk in walks for seed in walk.seeds) == sorted(
        reset_seed(4, EVAL_SEEDS, 100 + i) for i in range(episodes)
    )
    assert result.lengths.sum() == sum(len(walk.actions) for walk in walks)
    np.testing.assert_array_equal(result.returns, -result.lengths)
    assert not result.success.any()
    assert {3 + i for i in range(min(pool, episodes))} <= set(result.lengths.tolist())


@given(pool=st.integers(1, 5), chunk=st.integers(1, 4))
def test_an_episode_is_the_same_on_any_pool_for_a_policy_without_noise(pool, chunk):
    def policy(obs, _):
        # towards 0, never past it
        return (-0.25 * obs[:, :1].clamp(-1, 1))[:, None].expand(-1, chunk, 1)

    class Short(Walk):
        def step(self, action):
            obs, reward, _, truncated, _ = super().step(action)
            home = abs(self.x) < 0.2
            return obs, reward, home, truncated, {"success": home}

    alone = evaluate(policy, [Short(60)], episodes=6, seed=1, first_episode=0, guard=GUARD)
    together = evaluate(
        policy, [Short(60) for _ in range(pool)], episodes=6, seed=1, first_episode=0, guard=GUARD
    )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(set(alone.lengths.tolist())) > 1
    assert alone.success.all()


class Passing(Walk):
    """Is at the goal in step `goal` alone; the task ends after `limit` steps wherever it is."""

    def step(self, action):
        obs, reward, _, _, _ = super().step(action)
        return obs, reward, self.time >= self.limit, False, {"success": self.time == self.goal}


@pytest.mark.parametrize("kind", [Walk, Passing])
def test_success_is_that_of_the_last_step(kind):
    """Not of a step before it, and not the end of the task."""
    pool = [kind(limit=5, goal=5), kind(limit=5, goal=9), kind(limit=5, goal=3)]
    result = evaluate(Recorder(2), pool, episodes=3, seed=0, first_episode=0, guard=GUARD)
    at_once = kind is Walk
    assert result.success.tolist() == [True, False, at_once]
    assert result.lengths.tolist() == [5, 5, 3 if at_once else 5]
    assert result.returns.tolist() == [-4, -5, -2]


def test_the_noise_of_an_evaluation_is_decided_by_its_seed_and_first_episode():
    def noise(seed, first):
        policy = Recorder(2)
        evaluate(policy, [Walk()], episodes=1, seed=seed, first_episode=first, guard=GUARD)
        return torch.cat(policy.given)

    assert torch.equal(noise(7, 9), noise(7, 9))
    assert not torch.equal(noise(7, 9), noise(8, 9))
    assert not torch.equal(noise(7, 9), noise(7, 10))


def test_an_evaluation_takes_nothing_from_the_outside():
    torch.manual_seed(0)
    first = evaluate(
        Recorder(2), [Walk(), Walk()], episodes=3, seed=7, first_episode=9, guard=GUARD
    )
    torch.manual_seed(1)
    again = evaluate(
        Recorder(2), [Walk(), Walk()], episodes=3, seed=7, first_episode=9, guard=GUARD
    )
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_start_states_are_a_function_of_seed_stream_and_number():
    numbers = [
        reset_seed(s, t, e) for s in range(3) for t in (TRAIN_SEEDS, EVAL_SEEDS) for e in range(50)
    ]
    assert len(set(numbers)) == len(numbers)
    assert reset_seed(2, EVAL_SEEDS, 17) == reset_seed(2, EVAL_SEEDS, 17)


def test_each_round_of_steps_can_be_filmed():
    rounds, pool = [], [Walk(3), Walk(5)]
    evaluate(
        Recorder(2),
        pool,
        episodes=3,
        seed=0,
        first_episode=0,
        guard=GUARD,
        frame=lambda played: rounds.append({e: pool[i].time for i, e in played.items()}),
    )
    assert rounds == [{0: 1, 1: 1}, {0: 2, 1: 2}, {0: 3, 1: 3}, {1: 4, 2: 1}, {1: 5, 2: 2}, {2: 3}]
