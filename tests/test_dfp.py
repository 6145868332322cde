"""Laws of the agent: where gradients go, which critic ranks, what a mask hides. Bandits: test_bandit.py."""

from dataclasses import replace

import pytest
import torch

import wgflow as wg
from tests.small_agents import build, make_batch, noise_for
from wgflow_rl.agents import fields, losses

H = 2  # actions per chunk


@pytest.fixture
def agent():
    """Its two fields differ, and its old policy and target critic from policy and critic."""
    return build("dfp", chunk=H, generated=4, field="energy", improve_field="likelihood")


def grads(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_the_actor_loss_reaches_the_policy_and_nothing_else(agent):
    loss, _ = agent.actor_loss(make_batch(H), noise_for(agent), online=True)
    loss.backward()
    assert grads(agent.policy)
    assert all(g.abs().sum() > 0 for g in grads(agent.policy))
    assert not grads(agent.critic) + grads(agent.old_policy) + grads(agent.target_critic)


def test_the_critic_loss_reaches_the_critic_and_nothing_else(agent):
    loss, _ = agent.critic_loss(make_batch(H), noise_for(agent))
    loss.backward()
    assert grads(agent.critic)
    assert not grads(agent.policy) + grads(agent.target_critic)


def test_the_target_is_best_of_n_by_the_online_critic_valued_by_the_target_critic(agent):
    batch, noise = make_batch(H), noise_for(agent)
    with torch.no_grad():
        proposals = agent.policy(batch.next_obs, noise.target).clamp(-1, 1)
        pick = agent.critic.mean(batch.next_obs, proposals).argmax(-1)
        values = agent.target_critic.mean(batch.next_obs, proposals)
        y = batch.returns + batch.discount * values[torch.arange(8), pick]
        q = agent.critic(batch.obs, batch.chunk)[..., 0]
    loss, _ = agent.critic_loss(batch, noise)
    torch.testing.assert_close(loss, ((q - y) ** 2).mean())


def test_no_bootstrap_where_the_task_ended(agent):
    batch = make_batch(H)._replace(discount=torch.zeros(8))
    elsewhere = batch._replace(next_obs=batch.next_obs + 5)
    torch.testing.assert_close(
        *(agent.critic_loss(b, noise_for(agent))[0] for b in (batch, elsewhere))
    )


def test_chunks_with_unknown_targets_and_invalid_steps_teach_nothing(agent):
    batch = make_batch(H)
    batch.valid[3, 1] = 0
    batch.complete[3] = 0
    other = batch._replace(actions=batch.actions.clone(), returns=batch.returns.clone())
    other.actions[3, 1] = 0.77  # beyond the end of its trajectory
    noise = noise_for(agent)
    torch.testing.assert_close(
        agent.actor_loss(batch, noise, online=False)[0],
        agent.actor_loss(other, noise, online=False)[0],
    )
    other.returns[3] = 100
    torch.testing.assert_close(
        agent.critic_loss(batch, noise)[0],
        agent.critic_loss(other, noise)[0],
    )


def test_saturated_coordinates_are_pulled_back(agent):
    """The published code clips before the loss, so a coordinate outside [-1, 1] gets no gradient; ours gets one."""
    with torch.no_grad():
        agent.policy.net.rest[-1].bias.fill_(3.0)
    batch = make_batch(H)
    loss, log = agent.actor_loss(batch, noise_for(agent), online=False)
    loss.backward()
    assert log["clipped"] > 0.9
    assert (agent.policy.net.rest[-1].bias.grad > 0).all()  # descent lowers every coordinate


def actor_gradient(agent, loss):
    return torch.autograd.grad(loss, list(agent.policy.parameters()))


def test_the_loss_is_eq_16_with_its_two_fields_and_the_positives_of_eq_15(agent):
    """L_BC + lam L_topK. A field of unit rms has a constant loss, so gradients are compared."""
    batch, noise, cfg = make_batch(H), noise_for(agent), agent.cfg
    a_hat = agent.policy(batch.obs, noise.generated)
    with torch.no_grad():
        pool = agent.old_policy(batch.obs, noise.candidates)
        q = agent.critic(batch.obs, pool.clamp(-1, 1)).mean(0)
        order = q.argsort(-1)[:, -cfg.top_k :]
        best = torch.stack([p[i] for p, i in zip(pool, order, strict=True)])
    bc = wg.regress_onto(a_hat, fields.parse("energy")(a_hat.detach(), batch.chunk))
    topk = wg.regress_onto(a_hat, fields.parse("likelihood")(a_hat.detach(), best))
    for online, expected in ((True, bc + cfg.lam * topk), (False, bc)):
        loss, _ = agent.actor_loss(batch, noise, online=online)
        torch.testing.assert_close(loss, expected)
        gradients = actor_gradient(agent, loss)
        torch.testing.assert_close(
            gradients,
            torch.autograd.grad(expected, list(agent.policy.parameters()), retain_graph=True),
        )


@pytest.mark.parametrize(
    ("online", "weight"), [(False, "lam_offline"), (True, "lam")], ids=["offline", "online"]
)
def test_each_phase_has_its_own_weight_of_the_improvement(agent, online, weight):
    batch, noise, found = make_batch(H), noise_for(agent), {}
    for value in (0.0, 0.25):
        agent.cfg = replace(agent.cfg, lam=7.0, lam_offline=7.0)
        agent.cfg = replace(agent.cfg, **{weight: value})
        found[value], log = agent.actor_loss(batch, noise, online=online)
    torch.testing.assert_close(found[0.25], found[0.0] + 0.25 * log["topk_loss"])


def test_boltzmann_positives_are_all_candidates_weighted_by_their_exponentiated_values(agent):
    agent.cfg = replace(agent.cfg, positives="boltzmann", temperature=0.3, lam=1.0)
    batch, noise = make_batch(H), noise_for(agent)
    a_hat = agent.policy(batch.obs, noise.generated)
    with torch.no_grad():
        pool = agent.old_policy(batch.obs, noise.candidates)
        weights = (agent.critic.mean(batch.obs, pool.clamp(-1, 1)) / 0.3).softmax(-1)
    expected = wg.regress_onto(a_hat, fields.parse("energy")(a_hat.detach(), batch.chunk))
    velocity = fields.parse("likelihood")(a_hat.detach(), pool, pos_weights=weights)
    expected = expected + wg.regress_onto(a_hat, velocity)
    loss, _ = agent.actor_loss(batch, noise, online=True)
    torch.testing.assert_close(actor_gradient(agent, loss), actor_gradient(agent, expected))


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
    score = lambda scale, shift: losses.energy_score(
        torch.randn(4000, 6, 3, generator=g) * scale + shift, y
    ).mean()
    true = score(1.0, 0.0)
    assert true < min(score(0.5, 0.0), score(1.6, 0.0), score(1.0, 0.5))
