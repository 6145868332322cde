"""Laws of observation history, receding horizons, averaged weights and networks with a trunk, for every method."""

import gymnasium
import numpy as np
import pytest
import torch

import wgflow as wg
from tests.small_agents import A, B, S, build, make_batch, noise_for
from tests.walk import Walk
from wgflow_rl.agents import presets
from wgflow_rl.data.episodes import Episodes
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.episodes import SingleTask
from wgflow_rl.training import updates

H, T = 2, 5  # actions executed and predicted
every_method = pytest.mark.parametrize("method", presets.METHODS)


def longer_batch(seed=0, horizon=T):
    """A batch of `horizon` predicted actions, all valid."""
    return make_batch(horizon, seed)


def wide(method, **numbers):
    """A method that predicts T actions and executes H."""
    return build(method, chunk=H, horizon=T, **numbers)


@every_method
def test_the_first_actions_of_a_prediction_are_executed(method):
    agent = wide(method)
    obs = torch.randn(3, S, generator=torch.Generator().manual_seed(1))
    executed = agent.act(obs, torch.Generator().manual_seed(0))
    agent.cfg = agent.cfg.__class__(**{**vars(agent.cfg), "chunk": T, "horizon": 0})
    whole = agent.act(obs, torch.Generator().manual_seed(0))
    assert executed.shape == (3, H, A)
    torch.testing.assert_close(executed, whole[:, :H], rtol=0, atol=0)


@pytest.mark.parametrize("method", sorted(set(presets.METHODS) - set(presets.CLONERS)))
def test_no_value_depends_on_actions_that_are_not_executed(method):
    agent = wide(method)
    chunks = torch.randn(B, 4, T * A, generator=torch.Generator().manual_seed(1))
    other = chunks.clone()
    other[..., H * A :] += 1
    obs = longer_batch().obs
    torch.testing.assert_close(agent.q(obs, chunks), agent.q(obs, other), rtol=0, atol=0)
    batch = longer_batch()
    changed = batch.actions.clone()
    changed[:, H:] += 1
    noise = noise_for(agent)
    own = {"rebrac"}  # its target penalises the distance of whole predictions from the data
    if method not in own:
        first, _ = agent.critic_loss(batch, noise)
        second, _ = agent.critic_loss(batch._replace(actions=changed), noise)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@every_method
def test_an_update_trains_every_predicted_action(method):
    """The rows of the last layer that belong to actions after the executed ones move too."""
    agent = wide(method)
    network = getattr(agent, agent.acts)
    before = network.net.rest[-1].bias.detach().clone()
    updates.update(agent, longer_batch(), noise_for(agent), online=False)
    moved = network.net.rest[-1].bias.detach() != before
    assert moved.all()


@every_method
def test_a_network_with_a_trunk_serves_every_method(method):
    agent = wide(method, trunk=(8, 8), history=2)
    log = updates.update(agent, longer_batch(), noise_for(agent), online=True)
    assert all(torch.isfinite(value).all() for value in log.values())
    network = getattr(agent, agent.acts)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert any("trunk" in name for name, _ in network.named_parameters())


# rebrac's policy and targets move at every second update only.
@pytest.mark.parametrize("method", sorted(set(presets.METHODS) - {"rebrac"}))
def test_the_average_of_the_weights_acts(method):
    """average <- (1 - r) average + r weights with r = max(.25, 9 / (t + 10)) at update t; the average acts."""
    agent = build(method, average=0.75)
    trained = getattr(agent, agent.acts)
    expected = [p.detach().clone() for p in agent.average.parameters()]
    agent.average_updates.fill_(24)  # 9 / 35 is above 1/4, 9 / 36 is 1/4, 9 / 37 below
    for seed, rate in enumerate((9 / 35, 0.25, 0.25)):
        updates.update(
            agent, make_batch(agent.cfg.chunk, seed), noise_for(agent, seed), online=True
        )
        expected = [
            (1 - rate) * e + rate * p.detach()
            for e, p in zip(expected, trained.parameters(), strict=True)
        ]
    for p, e in zip(agent.average.parameters(), expected, strict=True):
        torch.testing.assert_close(p, e)
    obs = make_batch(1).obs
    averaged = agent.act(obs, torch.Generator().manual_seed(0))
    assert getattr(agent, agent.acts) is trained
    with torch.no_grad():
        for p, e in zip(trained.parameters(), expected, strict=True):
            p.copy_(e)
    agent.cfg = agent.cfg.__class__(**{**vars(agent.cfg), "average": 0.0})
    torch.testing.assert_close(agent.act(obs, torch.Generator().manual_seed(0)), averaged)


def test_the_offline_rate_is_a_half_cosine():
    agent = build("drift-bc", lr=0.5, lr_end_offline=0.2)
    rates = []
    for progress in (0.0, 1 / 3, 0.5, 1.0):
        agent.anneal(progress, online=False)
        rates += [group["lr"] for group in agent.optimiser.param_groups]
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.1])


@pytest.mark.parametrize("method", presets.CLONING)
def test_the_densest_sample_of_a_kernel_density_estimate_is_executed(method):
    agent = build(method, act_samples=6)
    obs = make_batch(1).obs
    latent = agent.draw_latent(obs, 6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = agent.sample(obs, latent).clamp(-1, 1)
    distances = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    h = distances.sum((1, 2)) / (6 * 5) / 2
    density = wg.KDE(samples.double(), wg.Gaussian(h[:, None, None].double()))
    log_density = density.log_density(samples.double())
    score = agent.q(obs, samples).double()
    torch.testing.assert_close(
        score - score.mean(1, keepdim=True),
        log_density - log_density.mean(1, keepdim=True),
        rtol=1e-4,
        atol=1e-4,
    )
    densest = samples[torch.arange(B), log_density.argmax(1)]
    chosen = agent.act(obs, torch.Generator().manual_seed(0))
    torch.testing.assert_close(chosen.flatten(1), densest, rtol=0, atol=0)


# ---- history -----------------------------------------------------------------------------------


def episodes(lengths=(1, 4, 6)):
    """Trajectories whose observation at step t of trajectory k is (k, t)."""
    obs = np.array([(k, t) for k, n in enumerate(lengths) for t in range(n)], np.float32)
    ends = np.zeros(len(obs), bool)
    ends[np.cumsum(lengths) - 1] = True
    rows = len(obs)
    return Episodes(
        observations=obs,
        actions=np.zeros((rows, 1), np.float32),
        next_observations=obs + np.float32([0, 1]),
        rewards=np.arange(rows, dtype=np.float32),
        masks=np.ones(rows, np.float32),
        terminals=ends,
        env="test",
    )


@pytest.mark.parametrize("history", [1, 2, 3])
def test_stacked_data_are_what_a_stacked_environment_shows(history):
    """Row t holds observations t - n + 1 ... t, the first repeated; next_observations are those of row t + 1."""
    data = episodes().with_history(history)
    for row, (k, t) in enumerate(episodes().observations):
        wanted = [(k, max(0, t - i)) for i in range(history - 1, -1, -1)]
        after = [(k, max(0, t + 1 - i)) for i in range(history - 1, -1, -1)]
        np.testing.assert_array_equal(data.observations[row].reshape(-1, 2), wanted)
        np.testing.assert_array_equal(data.next_observations[row].reshape(-1, 2), after)


@pytest.mark.parametrize("history", [2, 3])
def test_a_stacked_environment_shows_the_last_observations_oldest_first(history):
    plain = Walk()
    stacked = gymnasium.wrappers.FlattenObservation(
        gymnasium.wrappers.FrameStackObservation(Walk(), history, padding_type="reset")
    )
    first, _ = plain.reset(seed=0)
    shown, _ = stacked.reset(seed=0)
    seen = [first] * history
    for _ in range(4):
        np.testing.assert_array_equal(shown, np.concatenate(seen[-history:]))
        action = np.full(plain.action_space.shape, 0.3, np.float32)
        seen.append(plain.step(action)[0])
        shown = stacked.step(action)[0]


def test_a_history_keeps_what_an_environment_overwrites():
    class OneBuffer(gymnasium.ObservationWrapper):
        buffer = np.zeros(2, np.float32)

        def observation(self, observation):
            self.buffer[:] = observation
            return self.buffer

    def shown(env):
        stacked = gymnasium.wrappers.FrameStackObservation(
            SingleTask(env, "walk"), 3, padding_type="reset"
        )
        action = np.full(env.action_space.shape, 0.3, np.float32)
        return [stacked.reset(seed=0)[0], *(stacked.step(action)[0] for _ in range(3))]

    for one, other in zip(shown(OneBuffer(Walk())), shown(Walk()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_subset_holds_whole_trajectories_without_repetition():
    data = episodes(lengths=(3, 5, 7, 2))
    for count in (1, 2, 4):
        part = data.subset(count, seed=0)
        assert part.trajectories == count
        assert sorted(part.lengths) == sorted(
            int((data.observations[:, 0] == k).sum()) for k in set(part.observations[:, 0])
        )
    with pytest.raises(ValueError, match="--data-episodes from 1 to 4"):
        data.subset(5, seed=0)


@pytest.mark.parametrize("horizon", [2, 3, 6])
def test_a_longer_prediction_changes_no_target_of_the_executed_chunk(horizon):
    """Returns, discount, next state and completeness are those of h actions, whatever is predicted after them."""
    data = episodes()
    replay, start = Replay(data, capacity=len(data)), torch.arange(len(data))
    short = replay.chunks(start, chunk=2, gamma=0.9)
    long = replay.chunks(start, chunk=2, gamma=0.9, horizon=horizon)
    for name in ("obs", "returns", "discount", "next_obs", "complete"):
        torch.testing.assert_close(getattr(long, name), getattr(short, name), rtol=0, atol=0)
    torch.testing.assert_close(long.actions[:, :2], short.actions, rtol=0, atol=0)
    left = torch.tensor(np.repeat(data.lengths, data.lengths)) - torch.tensor(
        data.observations[:, 1]
    )
    wanted = torch.minimum(left, torch.tensor(float(horizon)))
    torch.testing.assert_close(long.valid.sum(1), wanted.float())
