"""Laws of the agent: where gradients go, which critic ranks, what a mask hides. Bandits: test_bandit.py."""

import pytest
import torch

from tests.small_batches import make_batch, noise_for
from wgflow_rl.agents import drift, ops
from wgflow_rl.agents.dfp import DFP, DFPConfig
from wgflow_rl.training.updates import update

SMALL = DFPConfig(
    chunk=2,
    generated=4,
    candidates=6,
    top_k=2,
    target_samples=3,
    act_samples=5,
    hidden=(16, 16),
    batch=8,
)


@pytest.fixture
def agent():
    return DFP(SMALL, obs_dim=3, action_dim=2, seed=1)


def grads(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_the_actor_loss_reaches_the_policy_and_nothing_else(agent):
    loss, _ = agent.actor_loss(make_batch(), make_batch().obs, noise_for(agent), lam=0.5)
    loss.backward()
    assert grads(agent.policy)
    assert all(g.abs().sum() > 0 for g in grads(agent.policy))
    assert not grads(agent.critic) + grads(agent.old_policy) + grads(agent.target_critic)


def test_the_critic_loss_reaches_the_critic_and_nothing_else(agent):
    batch = make_batch()
    loss, _ = agent.critic_loss(batch, batch.obs, batch.next_obs, noise_for(agent))
    loss.backward()
    assert grads(agent.critic)
    assert not grads(agent.policy) + grads(agent.target_critic)


def test_the_target_is_best_of_n_by_the_online_critic_valued_by_the_slow_one(agent):
    batch, noise = make_batch(), noise_for(agent)
    with torch.no_grad():
        for p in agent.target_critic.parameters():
            p.add_(0.1)
        proposals = agent.policy(batch.next_obs, noise.target).clamp(-1, 1)
        pick = agent.critic.mean(batch.next_obs, proposals).argmax(-1)
        values = agent.target_critic.mean(batch.next_obs, proposals)
        y = batch.returns + batch.discount * values[torch.arange(8), pick]
        q = agent.critic(batch.obs, batch.actions.flatten(1)[:, None])[..., 0]
    loss, _ = agent.critic_loss(batch, batch.obs, batch.next_obs, noise)
    torch.testing.assert_close(loss, ((q - y) ** 2).mean())


def test_no_bootstrap_where_the_task_ended(agent):
    batch = make_batch()._replace(discount=torch.zeros(8))
    elsewhere = batch._replace(next_obs=batch.next_obs + 5)
    losses = [
        agent.critic_loss(b, b.obs, b.next_obs, noise_for(agent))[0] for b in (batch, elsewhere)
    ]
    torch.testing.assert_close(*losses)


def test_chunks_with_unknown_targets_and_invalid_steps_teach_nothing(agent):
    batch = make_batch()
    batch.valid[3, 1] = 0
    batch.complete[3] = 0
    other = batch._replace(actions=batch.actions.clone(), returns=batch.returns.clone())
    other.actions[3, 1] = 0.77  # beyond the end of its trajectory
    noise = noise_for(agent)
    torch.testing.assert_close(
        agent.actor_loss(batch, batch.obs, noise, lam=0.0)[0],
        agent.actor_loss(other, other.obs, noise, lam=0.0)[0],
    )
    other.returns[3] = 100
    torch.testing.assert_close(
        agent.critic_loss(batch, batch.obs, batch.next_obs, noise)[0],
        agent.critic_loss(other, other.obs, other.next_obs, noise)[0],
    )


def test_saturated_coordinates_are_pulled_back(agent):
    """The released code clips before the loss, so a coordinate outside [-1, 1] gets no gradient; ours gets one."""
    with torch.no_grad():
        agent.policy.net.rest[-1].bias.fill_(3.0)
    batch = make_batch()
    loss, log = agent.actor_loss(batch, batch.obs, noise_for(agent), lam=0.0)
    loss.backward()
    assert log["clipped"] > 0.9
    assert (agent.policy.net.rest[-1].bias.grad > 0).all()  # descent lowers every coordinate


def test_the_old_policy_moves_slowly_and_starts_again_at_the_switch(agent):
    batch = make_batch()
    before = [p.clone() for p in agent.old_policy.parameters()]
    update(agent, batch, noise_for(agent), online=False)
    for old, new, slow in zip(
        before, agent.policy.parameters(), agent.old_policy.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, old + SMALL.old_rate * (new - old))
    agent.start_online()
    assert all(
        torch.equal(a, b)
        for a, b in zip(agent.policy.parameters(), agent.old_policy.parameters(), strict=True)
    )


def test_an_update_is_a_function_of_parameters_batch_and_noise():
    runs = []
    for _ in range(2):
        agent = DFP(SMALL, obs_dim=3, action_dim=2, seed=1)
        for i in range(3):
            update(agent, make_batch(seed=i), noise_for(agent, seed=i), online=i > 0)
        runs.append([p.detach().clone() for p in agent.policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_executed_chunks_are_the_best_of_n_and_inside_the_box(agent):
    obs = torch.randn(4, 3)
    chunk = agent.act(obs, torch.Generator().manual_seed(5))
    with torch.no_grad():
        pool = agent.policy(
            obs, torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(5))
        ).clamp(-1, 1)
        value = agent.critic.mean(obs, pool)
    expected = pool[torch.arange(4), value.argmax(1)].reshape(4, 2, 2)
    torch.testing.assert_close(chunk, expected)
    assert chunk.abs().max() <= 1


def test_energy_score_is_least_for_the_true_distribution():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(4000, 3, generator=g)
    score = lambda scale, shift: ops.energy_score(
        torch.randn(4000, 6, 3, generator=g) * scale + shift, y
    ).mean()
    true = score(1.0, 0.0)
    assert true < min(score(0.5, 0.0), score(1.6, 0.0), score(1.0, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enrgy", "not one of eq3, released, likelihood, energy"),
        ("likelihood:0", "cannot be used"),
        ("likelihood:-1", "cannot be used"),
        ("energy:2", "wanted a number between 0 and 2"),
        ("energy:0.5,0.25", "wanted a number between 0 and 2"),
        ("eq3:0.1,0.2", "wanted a positive number"),
        ("laplace:0", "wanted a positive number"),
        ("released:nan", "cannot be used"),
        ("energy+", "not one of"),
    ],
)
def test_a_field_that_cannot_be_read_is_refused_with_the_known_names(text, message):
    with pytest.raises(ValueError, match=message):
        drift.parse(text)


def test_drifts_print_as_values():
    assert drift.parse("likelihood:0.3+energy") == drift.Mixture(
        (drift.Likelihood(0.3), drift.Energy())
    )
    assert drift.parse("released:0.02,0.05") == drift.Released((0.02, 0.05))
    assert drift.parse("energy:0.25+laplace:0.1") == drift.Mixture(
        (drift.Energy(0.25), drift.LaplaceScore(0.1))
    )


@pytest.mark.parametrize(
    "text",
    ["eq3", "released", "likelihood", "energy", "energy:0.25", "laplace", "energy+laplace:0.1"],
)
def test_a_drift_has_no_units_and_its_raw_field_is_a_length(text):
    g = torch.Generator().manual_seed(0)
    x, pos = torch.randn(6, 5, 4, generator=g), torch.randn(6, 2, 4, generator=g)
    V = drift.parse(text)
    torch.testing.assert_close(V.raw(3 * x, 3 * pos), 3 * V.raw(x, pos), rtol=1e-4, atol=1e-5)
    if text != "eq3":  # left as the paper has it: a length itself
        torch.testing.assert_close(V(3 * x, 3 * pos), V(x, pos), rtol=1e-4, atol=1e-5)
