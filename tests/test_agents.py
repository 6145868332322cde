"""Laws of every agent: which loss moves what, which critic chooses, what a seed decides; the equations they share."""

import contextlib

import pytest
import torch

from tests.small_agents import (
    TARGETS,
    A,
    B,
    ConstantValue,
    S,
    Twins,
    build,
    constant,
    make_batch,
    noise_for,
)
from tests.strategies import NoReads
from wgflow import arguments
from wgflow_rl.agents import losses, presets, sampling
from wgflow_rl.agents.networks import MeanVelocityPolicy
from wgflow_rl.training import updates
from wgflow_rl.training.snapshot import restore, snapshot

CRITICS = ("critic", "value")
ACTORS = ("policy", "flow", "diffusion")


def networks_of(agent, names):
    """The networks of these names that a method has."""
    return {name: getattr(agent, name) for name in names if hasattr(agent, name)}


def update(agent, seed=0):
    batch = make_batch(agent.cfg.chunk, seed)
    return updates.update(agent, batch, noise_for(agent, seed), online=True)


def gradients(agent, names):
    """Gradients of the last update, by network and parameter."""
    return {
        f"{name}.{key}": p.grad.clone()
        for name, network in networks_of(agent, names).items()
        for key, p in network.named_parameters()
    }


def times_three(function):
    def scaled(*args, **kwargs):
        result = function(*args, **kwargs)
        return (3 * result[0], *result[1:]) if isinstance(result, tuple) else 3 * result

    return scaled


every_method = pytest.mark.parametrize("method", presets.METHODS)
with_critic = pytest.mark.parametrize("method", sorted(set(presets.METHODS) - set(presets.CLONERS)))


# ---- gradients -------------------------------------------------------------------------------------------------------


@with_critic
def test_the_actor_loss_moves_no_critic_and_the_critic_loss_no_actor(method):
    plain, louder_actor, louder_critic = build(method), build(method), build(method)
    louder_actor.actor_loss = times_three(louder_actor.actor_loss)
    louder_critic.critic_loss = times_three(louder_critic.critic_loss)
    for agent in (plain, louder_actor, louder_critic):
        update(agent)
    critic, actor = gradients(plain, CRITICS), gradients(plain, ACTORS)
    assert critic
    assert actor
    torch.testing.assert_close(gradients(louder_actor, CRITICS), critic)
    torch.testing.assert_close(gradients(louder_critic, ACTORS), actor)
    policy = gradients(plain, ["policy"] if hasattr(plain, "policy") else ACTORS)
    for name, gradient in gradients(louder_actor, ACTORS).items():
        if name in policy:
            torch.testing.assert_close(gradient, 3 * policy[name], rtol=1e-4, atol=1e-6)


@every_method
def test_a_target_network_follows_its_online_network_at_its_rate_and_no_gradient(method):
    agent = build(method)
    targets = networks_of(agent, TARGETS)
    before = {name: [p.clone() for p in net.parameters()] for name, net in targets.items()}
    update(agent)
    for name, target in targets.items():
        online, rate = (
            getattr(o, n) for o, n in zip((agent, agent.cfg), TARGETS[name], strict=True)
        )
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
        for old, new, p in zip(before[name], online.parameters(), target.parameters(), strict=True):
            torch.testing.assert_close(p, old + rate * (new - old))


# rebrac and srpo are left out: their regularisers pull a saturated action back too, but against Q, which may win.
@pytest.mark.parametrize(
    ("method", "numbers"),
    [(method, {}) for method in presets.METHODS]
    + [("dfp", {"field": field}) for field in ("published", "mmd-laplace", "drifting:0.05+energy")]
    + [("dfp", {"positives": "boltzmann"})],
)
def test_an_update_waits_for_no_device(monkeypatch, method, numbers):
    """With every device treated as one that would have to be waited for, an update reads no value; and is the same."""
    found = []
    for immediate in (("cpu",), ()):
        monkeypatch.setattr(arguments, "IMMEDIATE", immediate)
        agent = build(method, **numbers)
        batch, noise = make_batch(agent.cfg.chunk), noise_for(agent)
        with contextlib.nullcontext() if immediate else NoReads():
            updates.update(agent, batch, noise, online=True)
        found.append(snapshot(agent))
    for name, t in found[0].items():
        assert torch.equal(t, found[1][name]), name


@pytest.mark.parametrize("method", sorted(set(presets.METHODS) - {"rebrac", "srpo"}))
def test_saturated_coordinates_are_pulled_back(method):
    """A policy that leaves the box everywhere is moved towards it in every coordinate, clipped or not."""
    numbers = {"fbrac": {"alpha": 30.0}, "cac": {"eta": 0.0}, "fql": {"alpha": 30.0}}.get(
        method, {}
    )
    agent = build(method, **numbers)
    network = next(iter(networks_of(agent, ACTORS).values()))
    last = network.net.rest[-1]
    # mvp generates e - u: a lower u is a higher action.
    out = -6.0 if isinstance(network, MeanVelocityPolicy) else 6.0
    with torch.no_grad():
        last.bias.fill_(out)
    updates.update(agent, make_batch(agent.cfg.chunk), noise_for(agent), online=False)
    assert (torch.sign(last.bias.grad) == torch.sign(torch.tensor(out))).all()


# ---- the target --------------------------------------------------------------------------------------------------


@with_critic
def test_the_bootstrapped_value_is_the_target_critics_mean_or_minimum_as_the_method_says(method):
    """y = R_h + gamma^h V with V = 2, the mean of target critics 1 and 3; 1, their minimum; or IQL's state value 5."""
    agent = build(method, **({"critic_penalty": 0.0} if method == "rebrac" else {}))
    agent.target_critic = Twins(constant(1), constant(3))
    bootstrap = {"rebrac": 1.0, "cac": 1.0}.get(method, 2.0)
    if hasattr(agent, "value"):
        agent.value, bootstrap = ConstantValue(5), 5.0
    batch = make_batch(agent.cfg.chunk)
    y = batch.returns + batch.discount * bootstrap
    q = agent.critic(batch.obs, batch.chunk)[..., 0]
    assert not torch.allclose(q[0], q[1])
    _, log = agent.loss(batch, noise_for(agent), online=False)
    torch.testing.assert_close(log["td_target"], y.mean())
    torch.testing.assert_close(log["critic_loss"], (q - y).square().mean().detach())
    if hasattr(agent, "value"):  # tau-expectile of min Q_target: 1 lies below 5
        expected = torch.tensor((1 - agent.cfg.expectile) * 16)
        torch.testing.assert_close(log["value_loss"], expected)


@pytest.mark.parametrize("method", ["qc-bfn", "mvp", "dfp"])
def test_the_next_chunk_is_the_best_of_n_by_the_mean_online_critic(method):
    """Ranked by the online critics' mean, not by one of them; valued by the target critics."""
    agent, first = build(method), lambda obs, chunks: chunks[..., 0]
    agent.critic = Twins(
        lambda o, c: c[..., 0] + 9 * c[..., 1], lambda o, c: c[..., 0] - 9 * c[..., 1]
    )
    agent.target_critic = Twins(first, first)
    batch, noise = make_batch(agent.cfg.chunk), noise_for(agent)
    with torch.no_grad():
        chunks = agent.sample(batch.next_obs, noise.target).clamp(-1, 1)
    assert chunks.shape[1] == 3
    y = batch.returns + batch.discount * chunks[..., 0].amax(1)
    torch.testing.assert_close(agent.loss(batch, noise, online=False)[1]["td_target"], y.mean())


@pytest.mark.parametrize("method", ["cac", "rebrac"])
@pytest.mark.parametrize("name", ["target_policy", "policy"])
def test_the_next_chunk_is_of_the_target_policy(method, name):
    targets = []
    for shift in (0.0, 1.0):
        agent = build(method)
        getattr(agent, name).net.rest[-1].bias.data += shift
        _, log = agent.loss(make_batch(agent.cfg.chunk), noise_for(agent), online=False)
        targets.append(log["td_target"])
    assert torch.equal(*targets) == (name == "policy")


@with_critic
def test_where_the_task_ended_nothing_is_bootstrapped(method):
    found = []
    for shift in (0.0, 5.0):
        agent = build(method)
        batch = make_batch(agent.cfg.chunk)
        batch = batch._replace(discount=0 * batch.discount, next_obs=batch.next_obs + shift)
        found.append(updates.update(agent, batch, noise_for(agent), online=True)["critic_loss"])
    torch.testing.assert_close(*found)


@with_critic
def test_chunks_with_unknown_targets_teach_no_critic(method):
    found = []
    for value in (0.0, 100.0):
        agent = build(method)
        batch = make_batch(agent.cfg.chunk)
        batch.complete[3], batch.returns[3] = 0, value
        found.append(updates.update(agent, batch, noise_for(agent), online=True)["critic_loss"])
    torch.testing.assert_close(*found)


def test_rebrac_knows_the_datas_answer_only_inside_a_trajectory():
    """beta_2 |a' - a'_data|^2 lowers the target where the next action is known, and is left out elsewhere."""
    targets = []
    for valid, penalty in ((1.0, 0.5), (0.0, 0.5), (1.0, 0.0)):
        agent = build("rebrac", critic_penalty=penalty)
        batch = make_batch(1)
        batch = batch._replace(next_valid=valid * batch.next_valid)
        log = updates.update(agent, batch, noise_for(agent), online=False)
        targets.append(log["td_target"])
    torch.testing.assert_close(targets[1], targets[2])
    assert targets[0] < targets[1]


def test_rebrac_moves_its_policy_and_both_target_networks_every_second_update():
    agent, moved = build("rebrac"), []
    watched = [
        agent.policy.net,
        agent.target_policy.net,
        agent.target_critic.nets[0],
        agent.critic.nets[0],
    ]
    for i in range(4):
        before = [net.first.weight.clone() for net in watched]
        update(agent, seed=i)
        moved.append(
            [not torch.equal(b, net.first.weight) for b, net in zip(before, watched, strict=True)]
        )
    assert moved == [[True, True, True, True], [False, False, False, True]] * 2


# ---- acting --------------------------------------------------------------------------------------------------------


def mean_is(sign):
    """Critics whose mean is `sign` times the first coordinate; each of them alone prefers another."""
    tilt = lambda chunks: 9 * chunks[..., 1]
    return Twins(lambda _, c: sign * c[..., 0] + tilt(c), lambda _, c: sign * c[..., 0] - tilt(c))


def minimum_is(sign):
    """Critics whose minimum is `sign` times the first coordinate; their mean prefers another."""
    return Twins(lambda _, c: sign * c[..., 0], lambda _, c: sign * c[..., 0] + 9 * (1 + c[..., 1]))


@pytest.mark.parametrize(
    ("method", "chooses", "silent", "likes"),
    [
        *(
            (name, "critic", "target_critic", mean_is)
            for name in ("bfn", "qc-bfn", "mvp", "mvp-topk", "dfp")
        ),
        *((name, "target_critic", "critic", minimum_is) for name in ("idql", "ifql")),
    ],
)
def test_the_executed_chunk_is_the_best_by_the_named_critic(method, chooses, silent, likes):
    """The largest first coordinate when that is the value, the smallest when it is minus the value."""
    obs, first, one = torch.randn(64, S), {}, {}
    for sign in (1, -1):
        agent = build(method)
        setattr(agent, chooses, likes(sign))
        setattr(agent, silent, likes(-sign))
        first[sign] = agent.act(obs, torch.Generator().manual_seed(0))[:, 0, 0]
        noise = agent.draw_latent(obs, agent.cfg.act_samples, torch.Generator().manual_seed(0))
        with torch.no_grad():
            one[sign] = sign * (sign * agent.sample(obs, noise).clamp(-1, 1)[..., 0]).amax(1)
    torch.testing.assert_close(first, one)
    assert (first[1] > first[-1]).float().mean() > 0.9


@every_method
def test_chunks_lie_in_the_box_and_are_decided_by_the_generator(method):
    agent, obs = build(method), torch.randn(5, S)
    chunks = [agent.act(obs, torch.Generator().manual_seed(seed)) for seed in (0, 0)]
    assert chunks[0].shape == (5, agent.cfg.chunk, A)
    assert chunks[0].abs().max() <= 1
    assert not chunks[0].requires_grad
    assert torch.equal(*chunks)


@every_method
def test_an_update_is_a_function_of_parameters_batch_and_noise(method):
    agents = [build(method), build(method)]
    for agent in agents:
        for i in range(3):
            log = update(agent, seed=i)
            assert all(torch.isfinite(value) for value in log.values())
    one, other = (agent.state_dict() for agent in agents)
    assert all(torch.equal(one[key], other[key]) for key in one)


@every_method
def test_a_snapshot_holds_everything_that_later_updates_depend_on(method):
    agent, resumed = build(method), build(method)
    update(agent)
    for p in resumed.parameters():
        p.data.zero_()
    restore(resumed, {name: t.clone() for name, t in snapshot(agent).items()})
    for i in (1, 2):
        logs = [update(one, seed=i) for one in (agent, resumed)]
        assert all(torch.equal(logs[0][key], logs[1][key]) for key in logs[0])


@every_method
def test_the_noise_of_an_update_is_what_the_method_declares(method):
    agent = build(method)
    noise = noise_for(agent)
    assert noise._fields == tuple(agent.noise)
    for draw, (_, *shape) in zip(noise, agent.noise.values(), strict=True):
        assert draw.shape == (B, *shape)
    assert all(torch.equal(a, b) for a, b in zip(noise, noise_for(agent), strict=True))


@pytest.mark.parametrize("method", ["dfp", "mvp-topk"])
def test_positives_are_the_best_samples_of_the_old_policy_by_the_mean_online_critic(method):
    """Nothing but the K best may matter: with all other candidates changed, the loss is the same."""
    batch, found = make_batch(5), {}
    for case in ("as drawn", "worse ones changed", "best ones changed", "another old policy"):
        agent = build(method)
        agent.critic = mean_is(1)
        noise = noise_for(agent)
        with torch.no_grad():
            first = agent.old_policy(batch.obs, noise.candidates).clamp(-1, 1)[..., 0]
        best = first >= first.topk(agent.cfg.top_k).values[:, -1:]
        if case == "another old policy":
            agent.start_online()
        elif case != "as drawn":
            changed = ~best if case == "worse ones changed" else best
            # Copies of the worst candidate, which are no better.
            worst = noise.candidates[torch.arange(B), first.argmin(1)][:, None]
            noise = noise._replace(
                candidates=torch.where(changed[..., None], worst, noise.candidates)
            )
        found[case] = agent.actor_loss(batch, noise, online=True)[1]["topk_loss"]
    torch.testing.assert_close(found["worse ones changed"], found["as drawn"])
    assert not torch.isclose(found["best ones changed"], found["as drawn"])
    assert not torch.isclose(found["another old policy"], found["as drawn"])


@pytest.mark.parametrize("method", ["dfp", "mvp-topk"])
def test_the_old_policy_starts_again_at_the_switch(method):
    agent = build(method)
    pairs = list(zip(agent.policy.parameters(), agent.old_policy.parameters(), strict=True))
    assert not any(torch.equal(new, old) for new, old in pairs)
    agent.start_online()
    assert all(torch.equal(new, old) for new, old in pairs)


@every_method
def test_the_learning_rate_falls_linearly_over_the_online_phase(method):
    agent = build(method, lr=0.5, lr_end=0.2)
    rates = []
    for progress in (0.0, 0.5, 1.0):
        agent.anneal(progress)
        rates += [group["lr"] for group in agent.optimiser.param_groups]
    assert rates == pytest.approx([0.5, 0.3, 0.1])


@every_method
def test_every_method_measures_how_far_it_is_from_its_data(method):
    agent = build(method)
    measures = agent.diagnose(make_batch(agent.cfg.chunk), torch.Generator().manual_seed(0))
    assert measures.keys() >= {"energy_score", "spread_ratio", "clipped"}
    assert ("q_executed" in measures) == (method not in presets.CLONERS)
    assert ("matched_temperature" in measures) == (method == "mvp-topk" or method.startswith("dfp"))
    assert all(torch.isfinite(value) and not value.requires_grad for value in measures.values())


@pytest.mark.parametrize("method", ["dfp", "bfn", "mvp", "idql", "ifql"])
def test_the_value_of_the_executed_chunk_is_that_of_the_draw(method):
    """The best without a temperature, the mean of softmax(Q / temperature) with one, a flat draw in the limit."""
    found = {}
    for temperature in (0.0, 0.1, 1e6):
        agent = build(method, act_temperature=temperature)
        agent.critic, agent.target_critic = mean_is(1), minimum_is(1)
        log = agent.diagnose(make_batch(agent.cfg.chunk), torch.Generator().manual_seed(0))
        found[temperature] = log["q_executed"] - log["q_proposed"]
    assert found[0.0] > found[0.1] > found[1e6]
    torch.testing.assert_close(found[1e6], torch.tensor(0.0), atol=1e-4, rtol=0)


# ---- equations they share ------------------------------------------------------------------------------------------


def test_expectiles_of_a_two_point_law():
    """v with tau E(x - v)+ = (1 - tau) E(v - x)+: for 0 and 1, half and half, v = tau."""
    x, v = torch.tensor([0.0, 1.0]), torch.tensor(0.5, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(losses.expectile_loss(x - v, 0.9).mean(), v)
        v = (v - gradient).detach().requires_grad_()
    torch.testing.assert_close(v, torch.tensor(0.9), atol=1e-4, rtol=0)


def test_euler_is_exact_for_straight_paths_and_flow_matching_zero_on_them():
    """All data at one point a: v = (a - x) / (1 - t) carries any noise to a in a straight line."""
    a = torch.tensor([[[0.3, -0.7]]]).double()
    velocity = lambda obs, x, t: (a - x) / (1 - t)
    x0, t = torch.randn(4, 6, 2).double(), torch.rand(4, 6, 1).double() * 0.9
    torch.testing.assert_close(
        sampling.euler(velocity, torch.empty(4, 0), x0, 10), a.expand(4, 6, 2)
    )
    assert losses.flow_matching(velocity, torch.empty(4, 0), a.expand(4, 6, 2), x0, t).max() < 1e-20


def test_the_mean_velocity_of_straight_paths_solves_the_mean_flow_identity():
    """All data at one point a: paths are straight, so u(z, r, t) = (z - a) / t for every r, and a = e - u(e, 0, 1)."""
    a = torch.tensor([[[0.3, -0.7]]]).double()
    u = lambda obs, z, r, t: (z - a) / t
    e, r = torch.randn(4, 6, 2).double(), torch.rand(4, 6, 1).double()
    t = r + (1 - r) * torch.rand(4, 6, 1).double()
    assert losses.mean_flow(u, torch.empty(4, 0), a.expand(4, 6, 2), e, r, t).max() < 1e-20


def test_the_mean_flow_target_is_a_finite_difference():
    """(t - r) du/dt along the path, by forward mode, is what a small step of the path gives."""
    u = lambda obs, z, r, t: torch.sin(z * t) + r * z
    g = torch.Generator().manual_seed(0)
    a, e = (torch.randn(3, 2, 2, generator=g).double() for _ in range(2))
    r, t, d = torch.full((3, 2, 1), 0.2).double(), torch.full((3, 2, 1), 0.7).double(), 1e-6
    z, v = (1 - t) * a + t * e, e - a
    slope = (u(None, z + d * v, r, t + d) - u(None, z - d * v, r, t - d)) / (2 * d)
    expected = (u(None, z, r, t) - (v - (t - r) * slope)).square()
    torch.testing.assert_close(
        losses.mean_flow(u, torch.empty(3, 0), a, e, r, t), expected, rtol=1e-6, atol=1e-9
    )


def test_the_reversed_diffusion_with_the_exact_noise_gives_back_the_data():
    """Data N(m, s^2): eps = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2). Many steps sample it; few are too narrow."""
    m, s = 0.3, 0.2

    def eps(obs, x, t):
        alpha, sigma = sampling.vp_noise(t)
        return sigma * (x - alpha * m) / (alpha**2 * s**2 + sigma**2)

    g = torch.Generator().manual_seed(0)
    x = sampling.ancestral(eps, torch.empty(8000, 0), torch.randn(8000, 1, 1000, 1, generator=g))
    assert x.mean() == pytest.approx(m, abs=0.02)
    assert x.std() == pytest.approx(s, rel=0.05)


def test_variance_is_preserved():
    alpha, sigma = sampling.vp_noise(torch.linspace(0, 1, 11).double())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(11).double())


def test_a_consistency_model_is_the_identity_at_the_lowest_level():
    agent = build("cac")
    x, obs = torch.randn(B, 1, A), torch.randn(B, S)
    low = torch.full((B, 1, 1), agent.cfg.sigma_min)
    torch.testing.assert_close(agent.denoise(agent.policy, obs, x, low), x)
    assert agent.sigmas[0] == pytest.approx(agent.cfg.sigma_min)
    assert agent.sigmas[-1] == pytest.approx(agent.cfg.sigma_max)
