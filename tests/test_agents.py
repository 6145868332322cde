"""Laws of every agent: what an update moves, which critic chooses, what is measured; the equations they share.

The losses are compared with the equations of their papers in test_method_equations.py.
"""

import contextlib

import pytest
import torch

from tests.small_agents import TARGETS, A, B, S, Twins, build, make_batch, noise_for
from tests.strategies import NoReads
from wgflow import arguments
from wgflow_rl.agents import implicit_q, losses, presets, sampling
from wgflow_rl.agents.networks import MeanVelocityPolicy
from wgflow_rl.training import updates
from wgflow_rl.training.snapshot import restore, snapshot

ACTORS = ("policy", "flow", "fast", "editor", "diffusion")
FLOWS = ("flow-bc", "bfn", "qc-bfn", "ifql", "fawac", "fbrac")  # methods that act with a flow


def networks_of(agent, names):
    """The networks of these names that a method has."""
    return {name: getattr(agent, name) for name in names if hasattr(agent, name)}


def update(agent, seed=0):
    batch = make_batch(agent.cfg.chunk, seed)
    return updates.update(agent, batch, noise_for(agent, seed), online=True)


every_method = pytest.mark.parametrize("method", presets.METHODS)


@every_method
def test_everything_that_an_agent_has_learned_is_on_its_device(method):
    """A checkpoint checks all of it in one operation, which takes tensors of one device."""
    agent = build(method).to("meta")
    assert {tensor.device.type for tensor in snapshot(agent).values()} == {"meta"}


# ---- updates ---------------------------------------------------------------------------------------------------------


@every_method
def test_a_target_network_follows_its_online_network_at_its_rate_and_no_gradient(method):
    # Steps long enough that a target network that moved before the optimiser would differ by more than rounding.
    agent = build(method, lr=0.05)
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
    + [("dfp", {"positives": positives}) for positives in ("boltzmann", "matched")]
    + [("dfp", {"improve_field": "energy", "repulsion": 1.0, "q_weight": 1.0})],
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


# driftql is left out: its samples are clipped inside the loss, as published.
@pytest.mark.parametrize("method", sorted(set(presets.METHODS) - {"rebrac", "srpo", "driftql"}))
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


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_rebrac_moves_its_policy_and_both_target_networks_in_every_delayed_update(delay):
    agent, moved = build("rebrac", policy_delay=delay), []
    watched = [
        agent.policy.net,
        agent.target_policy.net,
        agent.target_critic.nets[0],
        agent.critic.nets[0],
    ]
    for i in range(6):
        before = [net.first.weight.clone() for net in watched]
        update(agent, seed=i)
        moved.append(
            [not torch.equal(b, net.first.weight) for b, net in zip(before, watched, strict=True)]
        )
    rest = [[False, False, False, True]] * (delay - 1)
    assert moved == ([[True, True, True, True], *rest] * 6)[:6]


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
        ("idql", "target_critic", "critic", minimum_is),
        ("ifql", "critic", "target_critic", minimum_is),
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


@pytest.mark.parametrize("method", FLOWS)
def test_a_flow_takes_as_many_steps_from_noise_to_chunk_as_set(method):
    for steps in (2, 5):
        agent, calls = build(method, flow_steps=steps), []
        agent.flow.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023 - used in this turn
        agent.act(torch.randn(4, S), torch.Generator().manual_seed(0))
        assert len(calls) == steps


def test_rebrac_executes_the_chunk_that_its_actor_evaluates():
    agent, batch, seen = build("rebrac"), make_batch(1), []
    critic = lambda obs, chunks: seen.append(chunks.detach()) or chunks.sum(-1)
    agent.critic = Twins(critic, critic)
    agent.actor_loss(batch, noise_for(agent), online=False)
    torch.testing.assert_close(agent.act(batch.obs, torch.Generator()), seen[0])


@every_method
def test_chunks_lie_in_the_box_and_are_decided_by_the_generator(method):
    agent, obs = build(method), torch.randn(5, S)
    chunks = [agent.act(obs, torch.Generator().manual_seed(seed)) for seed in (0, 0)]
    assert chunks[0].shape == (5, agent.cfg.chunk, A)
    assert chunks[0].abs().max() <= 1
    assert not chunks[0].requires_grad
    assert torch.equal(*chunks)


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
        (gradient,) = torch.autograd.grad(implicit_q.expectile_loss(x - v, 0.9).mean(), v)
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


def test_a_consistency_model_is_the_identity_at_the_lowest_level():
    agent = build("cac")
    x, obs = torch.randn(B, 1, A), torch.randn(B, S)
    low = torch.full((B, 1, 1), agent.cfg.sigma_min)
    torch.testing.assert_close(agent.denoise(agent.policy, obs, x, low), x)
    assert agent.sigmas[0] == pytest.approx(agent.cfg.sigma_min)
    assert agent.sigmas[-1] == pytest.approx(agent.cfg.sigma_max)


def test_the_energy_score_is_least_for_the_true_distribution():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(4000, 3, generator=g)
    score = lambda scale, shift: losses.energy_score(
        torch.randn(4000, 6, 3, generator=g) * scale + shift, y
    ).mean()
    assert score(1.0, 0.0) < min(score(0.5, 0.0), score(1.6, 0.0), score(1.0, 0.5))
