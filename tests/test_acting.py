"""What is executed and measured, in which units states enter, and how far an update moves a weight."""

import copy

import pytest
import torch
from torch.testing import assert_close

from tests.small_agents import S, Twins, build, constant, make_batch, noise_for
from wgflow_rl.agents import diagnostics
from wgflow_rl.data.batch import Batch
from wgflow_rl.training import updates

MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, 3.0])
STATISTICS = {"obs_mean": MEAN, "obs_std": STD}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def critics(value):
    return Twins(*[lambda obs, chunks: value(chunks)] * 2)


# ---- states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dfp", "mvp-topk", "bc"])
def test_states_enter_normalised_when_asked_and_only_then(method):
    """Acting, measuring and the loss see (s - mean) / std, or s."""
    plain, unasked = build(method), build(method, **STATISTICS)
    asked = build(method, standardise=True, **STATISTICS)
    batch = make_batch(plain.cfg.chunk)
    normalised = batch._replace(
        obs=(batch.obs - MEAN) / STD, next_obs=(batch.next_obs - MEAN) / STD
    )
    for agent, seen in ((unasked, batch), (asked, normalised)):
        assert_close(agent.act(batch.obs, rng()), plain.act(seen.obs, rng()))
        assert_close(agent.diagnose(batch, rng()), plain.diagnose(seen, rng()))
        losses = [
            one.loss(b, noise_for(one), online=True)[0]
            for one, b in ((agent, batch), (plain, seen))
        ]
        assert_close(*losses)


# ---- updates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dfp", "rebrac"])
def test_an_update_is_one_step_of_adam_on_the_gradient_of_its_own_batch(method):
    """The first step moves a weight by lr g / (|g| + 1e-8); the second has the gradient of the second batch alone."""
    agent = build(method, lr=0.01)
    for number in (0, 1):
        batch, noise = make_batch(agent.cfg.chunk, number), noise_for(agent, number)
        before = copy.deepcopy(agent)
        before.zero_grad()
        before.loss(batch, noise, online=True)[0].backward()
        updates.update(agent, batch, noise, online=True)
        for old, new in zip(before.parameters(), agent.parameters(), strict=True):
            if not old.requires_grad or old.grad is None:
                continue
            assert_close(new.grad, old.grad)
            if number == 0:
                step = 0.01 * old.grad / (old.grad.abs() + 1e-8)
                assert_close(new.data, old.data - step, rtol=1e-5, atol=1e-6)


def test_gradients_beyond_the_largest_norm_are_scaled_down_together():
    """By max_grad_norm over the norm of all of them; shorter ones are left alone."""
    batch = make_batch(build("qam").cfg.chunk)
    found = {}
    for most in (0.0, 1e9, 1e-3):
        agent = build("qam", max_grad_norm=most)
        updates.update(agent, batch, noise_for(agent), online=True)
        grads = [p.grad for p in agent.parameters() if p.grad is not None]
        found[most] = torch.cat([g.flatten() for g in grads])
    assert_close(found[1e9], found[0.0])
    assert found[0.0].norm() > 1e-2
    assert_close(found[1e-3], found[0.0] * 1e-3 / found[0.0].norm(), rtol=1e-3, atol=1e-12)


def test_weight_decay_shrinks_weights_beside_the_step_of_adam():
    """AdamW (Loshchilov and Hutter 2019): w <- (1 - lr decay) w - the step without decay."""
    agents = [build("dfp", lr=0.01, weight_decay=decay) for decay in (0.0, 0.5)]
    before = [p.detach().clone() for p in agents[0].parameters()]
    for agent in agents:
        updates.update(agent, make_batch(agent.cfg.chunk), noise_for(agent), online=True)
    for start, plain, decayed in zip(before, *(a.parameters() for a in agents), strict=True):
        if plain.requires_grad:
            assert_close(decayed.data, plain.data - 0.01 * 0.5 * start, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("online", [False, True])
def test_the_phase_of_an_update_is_that_of_its_loss(online):
    agent = build("dfp")
    batch, noise = make_batch(agent.cfg.chunk), noise_for(agent)
    log = updates.checked_update(agent, batch, noise, online=online, at="step 1")
    assert ("topk_loss" in log) == online


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_one_entry_that_is_not_finite_is_found_and_named(value):
    good, bad = torch.ones(3, 2), torch.ones(3, 2)
    bad[1, 1] = value
    assert updates.all_finite([good, bad, good]).tolist() == [True, False, True]
    with pytest.raises(updates.TrainingDiverged, match="second is not finite at step 3"):
        updates.check_finite({"first": good, "second": bad, "third": bad}, at="step 3")


@pytest.mark.parametrize("where", ["batch.returns", "critic_loss", "gradient of policy"])
def test_an_update_that_is_not_finite_says_where(where):
    agent = build("dfp")
    batch, noise = make_batch(agent.cfg.chunk), noise_for(agent)
    if where == "batch.returns":
        batch.returns[2] = torch.nan
    elif where == "critic_loss":
        agent.target_critic = Twins(constant(torch.nan), constant(0))
    else:
        next(agent.policy.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(updates.TrainingDiverged, match=f"{where}.* is not finite at step 1"):
        updates.checked_update(agent, batch, noise, online=False, at="step 1")


# ---- acting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 1.0), (1e6, 0.2)])
def test_the_best_of_n_is_executed_as_often_as_the_temperature_says(temperature, share):
    """Always at temperature 0, and once in N = 5 in the limit of a flat draw."""
    agent = build("dfp", act_temperature=temperature, act_samples=5)
    agent.critic = critics(lambda chunks: chunks[..., 0])
    obs = torch.randn(2000, S, generator=rng(1))
    pool = agent.sample(obs, agent.draw_latent(obs, 5, rng())).detach().clamp(-1, 1)
    best = agent.act(obs, rng())[:, 0, 0] == pool[..., 0].amax(1)
    assert best.float().mean().item() == pytest.approx(share, abs=0.04)


def test_without_a_choice_the_executed_value_is_the_proposed_one():
    agent = build("dfp", act_samples=1)
    agent.critic = critics(lambda chunks: chunks[..., 0])
    log = agent.diagnose(make_batch(5), rng())
    assert_close(log["q_executed"], log["q_proposed"])


@pytest.mark.parametrize("method", ["dfp", "mvp-topk"])
def test_measured_chunks_are_judged_inside_the_box_and_candidates_are_of_the_old_policy(method):
    """Values count coordinates outside the box, then are the first coordinate: 1 for the old policy, -1 for the new."""
    agent, batch = build(method), make_batch(5)
    sign = -1 if method == "mvp-topk" else 1  # mvp generates e - u
    agent.old_policy.net.rest[-1].bias.data += 50 * sign
    agent.policy.net.rest[-1].bias.data -= 50 * sign
    agent.critic = critics(lambda chunks: (chunks.abs() > 1).float().sum(-1))
    log = agent.diagnose(batch, rng())
    assert log["clipped"] == 1
    assert log["q_executed"] == log["q_proposed"] == log["q_candidates"] == 0
    agent.critic = critics(lambda chunks: chunks[..., 0])
    log = agent.diagnose(batch, rng())
    assert (log["q_candidates"], log["q_proposed"]) == (1, -1)


@pytest.mark.parametrize("method", ["bfn", "ifql", "fawac", "fbrac"])
def test_a_flow_takes_the_steps_of_its_settings_when_it_acts(method):
    """One Euler step from noise z: z + v(s, z, 0), clipped."""
    choice = {"act_samples": 1} if method in ("bfn", "ifql") else {}
    agent, obs = build(method, flow_steps=1, **choice), torch.randn(6, S, generator=rng(1))
    z = agent.draw_latent(obs, 1, rng())
    expected = (z + agent.flow(obs, z, 0 * z[..., :1])).clamp(-1, 1).detach()
    assert_close(agent.act(obs, rng()), expected.reshape(6, agent.cfg.chunk, -1))


def test_a_chunk_is_a_sequence_of_actions_of_which_the_first_are_executed():
    """[a_t, a_{t+1}, ...] with the coordinates of one action beside each other, as in `Batch.chunk`."""
    agent, batch = build("dfp", chunk=2, horizon=4, act_samples=1), make_batch(4)
    agent.sample = lambda obs, noise: batch.chunk
    assert_close(agent.act(batch.obs, rng()), batch.actions[:, :2])


def test_rebrac_executes_the_squashed_action():
    agent, obs = build("rebrac"), torch.randn(6, S, generator=rng(1))
    agent.policy.net.rest[-1].weight.data *= 5
    assert_close(agent.act(obs, rng()), agent.policy(obs).tanh().detach())


# ---- settings that count -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("dfp", {"generated": 3, "candidates": 7, "target_samples": 4}),
        ("mvp-topk", {"candidates": 7, "target_samples": 4}),
        ("qc-bfn", {"target_samples": 4}),
    ],
)
def test_an_update_draws_as_many_samples_as_the_settings_say(method, numbers):
    noise = noise_for(build(method, **numbers))
    drawn = {name: getattr(noise, name.removesuffix("_samples")).shape[1] for name in numbers}
    assert drawn == numbers


@pytest.mark.parametrize("method", ["dfp", "mvp-topk"])
def test_the_switch_copies_the_policy_to_the_old_one_and_changes_nothing_else(method):
    agent = build(method)
    before = {name: p.clone() for name, p in agent.named_parameters()}
    agent.start_online()
    after = dict(agent.named_parameters())
    changed = {name.partition(".")[0] for name, p in after.items() if not p.equal(before[name])}
    assert changed == {"old_policy"}
    assert_close(agent.old_policy.state_dict(), agent.policy.state_dict())


# ---- measures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dfp", "bc"])
def test_chunks_that_end_early_are_not_measured(method):
    agent = build(method, chunk=2)
    batch = make_batch(2)
    batch.valid[1, 1] = batch.valid[6, 1] = 0
    other = batch._replace(actions=batch.actions.clone())
    other.actions[1], other.actions[6] = 9.0, -9.0
    assert_close(agent.diagnose(batch, rng()), agent.diagnose(other, rng()))


def test_the_raw_field_is_a_distance():
    """A policy 100 away from its data: a normalised field has rms 1 there, an unnormalised one the distance."""
    agent = build("dfp", field="energy", generated=4)
    agent.policy.net.rest[-1].bias.data += 100
    assert agent.diagnose(make_batch(5), rng())["raw_field"] > 5


def test_measures_of_two_samples_around_their_data():
    """Samples at ±2 and data at 4 in one dimension: E|x-x'| = 4, E|x-y| = 4, energy score 4 - 4 / 2."""
    one = torch.ones(1)
    y = torch.full((1, 1, 1), 4.0)
    batch = Batch(one[:, None], y, one[:, None], one, one, one[:, None], y, one[:, None], one)
    log = diagnostics.compare_with_data(torch.tensor([[[2.0], [-2.0]]]), batch)
    assert [log[name].item() for name in ("energy_score", "spread_ratio", "clipped")] == [2, 1, 1]
    log = diagnostics.compare_with_data(torch.tensor([[[0.5], [-2.0], [0.1], [3.0]]]), batch)
    assert log["clipped"] == 0.5


def test_values_of_candidates_and_of_the_executed_one():
    score = torch.tensor([[0.0, 5.0, 1.0, 2.0]])
    log = diagnostics.candidates(score, 2)
    assert (log["q_candidates"], log["q_positives"]) == (2, 3.5)
    assert diagnostics.executed(score) == {"q_proposed": 2, "q_executed": 5}
    warm = diagnostics.executed(torch.tensor([[0.0, 1.0]]), temperature=0.5)["q_executed"]
    assert_close(warm, 1 / (1 + torch.tensor(-2.0).exp()))


def test_the_matched_tilt_does_not_know_the_unit_of_the_values():
    score = torch.randn(5, 8, generator=rng())
    small, large = diagnostics.candidates(score, 2), diagnostics.candidates(10 * score, 2)
    assert_close(large["ess"], small["ess"], rtol=1e-3, atol=0)
    assert_close(large["matched_temperature"], 10 * small["matched_temperature"], rtol=1e-3, atol=0)
