"""Laws of every agent: which loss moves what, which critic chooses, what a seed decides; the equations they share."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from wgflow_rl.agents import methods, ops
from wgflow_rl.agents.networks import VectorField
from wgflow_rl.data.batch import Batch
from wgflow_rl.training import updates

B, S, A = 8, 3, 2
CRITICS = {"critic", "value"}
ACTORS = {"policy", "flow", "diffusion"}
SLOW = {"old_policy", "target_policy", "target_critic"}


def build(method, **numbers):
    """A row at the smallest size, with its top-K term on where it has one."""
    cfg = replace(methods.ROWS[method], hidden=(16, 16), batch=B)
    small = {"candidates": 6, "top_k": 2, "target_samples": 3, "act_samples": 5, "flow_steps": 3}
    cfg = replace(cfg, **{name: v for name, v in small.items() if hasattr(cfg, name)}, **numbers)
    return methods.build(cfg, obs_dim=S, action_dim=A, seed=1)


def make_batch(h, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(B, S, generator=g),
        actions=torch.rand(B, h, A, generator=g) * 2 - 1,
        valid=torch.ones(B, h),
        returns=torch.randn(B, generator=g),
        discount=torch.full((B,), 0.9**h),
        next_obs=torch.randn(B, S, generator=g),
        next_actions=torch.rand(B, h, A, generator=g) * 2 - 1,
        next_valid=torch.ones(B, h),
        complete=torch.ones(B),
    )


def update(agent, seed=0):
    batch = make_batch(agent.cfg.chunk, seed)
    return updates.update(
        agent, batch, agent.draw_noise(B, torch.Generator().manual_seed(seed)), online=True
    )


def gradients(agent, names):
    """Gradients of the last update, by module and parameter."""
    found = {name: agent.modules[name] for name in names if name in agent.modules}
    return {
        f"{m}.{n}": p.grad.clone() for m, mod in found.items() for n, p in mod.named_parameters()
    }


def times_three(function):
    def scaled(*args, **kwargs):
        result = function(*args, **kwargs)
        return (3 * result[0], *result[1:]) if isinstance(result, tuple) else 3 * result

    return scaled


every_method = pytest.mark.parametrize("method", methods.METHODS)
with_critic = pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"bc"}))


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
    policy = gradients(plain, ["policy"] if "policy" in plain.modules else ACTORS)
    for name, gradient in gradients(louder_actor, ACTORS).items():
        if name in policy:
            torch.testing.assert_close(gradient, 3 * policy[name], rtol=1e-4, atol=1e-6)


@every_method
def test_slow_copies_get_no_gradient(method):
    agent = build(method)
    update(agent)
    slow = [p for name in SLOW & agent.modules.keys() for p in agent.modules[name].parameters()]
    assert all(p.grad is None and not p.requires_grad for p in slow)


# rebrac and srpo are left out: their regularisers pull a saturated action back too, but against Q, which may win.
@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {"rebrac", "srpo"}))
def test_saturated_coordinates_are_pulled_back(method):
    """A policy that leaves the box everywhere is moved towards it in every coordinate, clipped or not."""
    numbers = {"fbrac": {"alpha": 30.0}, "cac": {"eta": 0.0}, "fql": {"alpha": 30.0}}.get(
        method, {}
    )
    agent = build(method, **numbers)
    name = next(name for name in ("policy", "flow", "diffusion") if name in agent.modules)
    last = agent.modules[name].net.rest[-1]
    out = -6.0 if isinstance(agent.modules[name], VectorField) and name == "policy" else 6.0
    out = 6.0 if method == "cac" else out  # mvp generates e - u: a lower u is a higher action
    with torch.no_grad():
        last.bias.fill_(out)
    batch, noise = (
        make_batch(agent.cfg.chunk),
        agent.draw_noise(B, torch.Generator().manual_seed(0)),
    )
    updates.update(agent, batch, noise, online=False)
    assert (torch.sign(last.bias.grad) == torch.sign(torch.tensor(out))).all()


# ---- the target --------------------------------------------------------------------------------------------------


@with_critic
def test_where_the_task_ended_nothing_is_bootstrapped(method):
    losses = []
    for shift in (0.0, 5.0):
        agent = build(method)
        batch = make_batch(agent.cfg.chunk)
        batch = batch._replace(discount=0 * batch.discount, next_obs=batch.next_obs + shift)
        noise = agent.draw_noise(B, torch.Generator().manual_seed(0))
        losses.append(updates.update(agent, batch, noise, online=True)["critic_loss"])
    torch.testing.assert_close(*losses)


@with_critic
def test_chunks_with_unknown_targets_teach_no_critic(method):
    losses = []
    for value in (0.0, 100.0):
        agent = build(method)
        batch = make_batch(agent.cfg.chunk)
        batch.complete[3], batch.returns[3] = 0, value
        noise = agent.draw_noise(B, torch.Generator().manual_seed(0))
        losses.append(updates.update(agent, batch, noise, online=True)["critic_loss"])
    torch.testing.assert_close(*losses)


def test_rebrac_knows_the_datas_answer_only_inside_a_trajectory():
    """beta_2 |a' - a'_data|^2 lowers the target where the next action is known, and is left out elsewhere."""
    targets = []
    for valid, penalty in ((1.0, 0.5), (0.0, 0.5), (1.0, 0.0)):
        agent = build("rebrac", critic_penalty=penalty)
        batch = make_batch(1)
        batch = batch._replace(next_valid=valid * batch.next_valid)
        noise = agent.draw_noise(B, torch.Generator().manual_seed(0))
        targets.append(updates.update(agent, batch, noise, online=False)["td_target"])
    torch.testing.assert_close(targets[1], targets[2])
    assert targets[0] < targets[1]


def test_rebrac_moves_its_policy_and_both_slow_copies_every_second_update():
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


class Likes(nn.Module):
    """A critic for which only the first coordinate counts."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, obs, chunks):
        return (self.sign * chunks[..., 0]).expand(2, *chunks.shape[:-1])

    def mean(self, obs, chunks):
        return self(obs, chunks).mean(0)


@pytest.mark.parametrize(
    ("method", "chooses", "silent"),
    [
        *(
            (name, "critic", "target_critic")
            for name in ("bfn", "qc-bfn", "mvp", "mvp-topk", "dfp")
        ),
        *((name, "target_critic", "critic") for name in ("idql", "ifql")),
    ],
)
def test_the_executed_chunk_is_the_best_by_the_critic_that_is_named(method, chooses, silent):
    obs, first = torch.randn(64, S), {}
    for sign in (1, -1):
        agent = build(method)
        setattr(agent, chooses, Likes(sign))
        setattr(agent, silent, Likes(-sign))
        first[sign] = agent.act(obs, torch.Generator().manual_seed(0))[:, 0, 0]
    assert (first[1] >= first[-1]).all()
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
    for name in agents[0].modules:
        one, other = (agent.modules[name].state_dict() for agent in agents)
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize("method", ["dfp", "mvp-topk"])
def test_the_old_policy_moves_slowly_and_starts_again_at_the_switch(method):
    agent = build(method)
    before = [p.clone() for p in agent.old_policy.parameters()]
    update(agent)
    pairs = list(zip(before, agent.policy.parameters(), agent.old_policy.parameters(), strict=True))
    for old, new, slow in pairs:
        torch.testing.assert_close(slow, old + agent.cfg.old_rate * (new - old))
    agent.start_online()
    assert all(torch.equal(new, slow) for _, new, slow in pairs)


@every_method
def test_the_learning_rate_falls_linearly_over_the_online_phase(method):
    agent = build(method, lr=0.5, lr_end=0.2)
    rates = []
    for progress in (0.0, 0.5, 1.0):
        ops.anneal_(agent.optimiser, agent.cfg.lr, agent.cfg.lr_end, progress)
        rates += [group["lr"] for group in agent.optimiser.param_groups]
    assert rates == pytest.approx([0.5, 0.3, 0.1])


@every_method
def test_every_method_measures_how_far_it_is_from_its_data(method):
    agent = build(method)
    measures = agent.diagnose(make_batch(agent.cfg.chunk), torch.Generator().manual_seed(0))
    assert measures.keys() >= {"energy_score", "spread_ratio", "clipped"}
    assert ("q_executed" in measures) == (method != "bc")
    assert ("matched_temperature" in measures) == (method == "mvp-topk" or method.startswith("dfp"))
    assert all(torch.isfinite(value) and not value.requires_grad for value in measures.values())


@pytest.mark.parametrize("method", ["dfp", "bfn", "mvp", "idql", "ifql"])
def test_the_value_of_the_executed_chunk_is_that_of_the_draw(method):
    """The best without a temperature, the mean of softmax(Q / temperature) with one, a flat draw in the limit."""
    found = {}
    for temperature in (0.0, 0.1, 1e6):
        agent = build(method, act_temperature=temperature)
        agent.critic = agent.target_critic = Likes(1)
        log = agent.diagnose(make_batch(agent.cfg.chunk), torch.Generator().manual_seed(0))
        found[temperature] = log["q_executed"] - log["q_proposed"]
    assert found[0.0] > found[0.1] > found[1e6]
    torch.testing.assert_close(found[1e6], torch.tensor(0.0), atol=1e-4, rtol=0)


# ---- equations they share ------------------------------------------------------------------------------------------


def test_expectiles_of_a_two_point_law():
    """v with tau E(x - v)+ = (1 - tau) E(v - x)+: for 0 and 1, half and half, v = tau."""
    x, v = torch.tensor([0.0, 1.0]), torch.tensor(0.5, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(ops.expectile_loss(x - v, 0.9).mean(), v)
        v = (v - gradient).detach().requires_grad_()
    torch.testing.assert_close(v, torch.tensor(0.9), atol=1e-4, rtol=0)


def test_euler_is_exact_for_straight_paths_and_flow_matching_zero_on_them():
    """All data at one point a: v = (a - x) / (1 - t) carries any noise to a in a straight line."""
    a = torch.tensor([[[0.3, -0.7]]]).double()
    velocity = lambda obs, x, t: (a - x) / (1 - t)
    x0, t = torch.randn(4, 6, 2).double(), torch.rand(4, 6, 1).double() * 0.9
    torch.testing.assert_close(ops.euler(velocity, torch.empty(4, 0), x0, 10), a.expand(4, 6, 2))
    assert ops.flow_matching(velocity, torch.empty(4, 0), a.expand(4, 6, 2), x0, t).max() < 1e-20


def test_the_mean_velocity_of_straight_paths_solves_the_mean_flow_identity():
    """All data at one point a: paths are straight, so u(z, r, t) = (z - a) / t for every r, and a = e - u(e, 0, 1)."""
    a = torch.tensor([[[0.3, -0.7]]]).double()
    u = lambda obs, z, r, t: (z - a) / t
    e, r = torch.randn(4, 6, 2).double(), torch.rand(4, 6, 1).double()
    t = r + (1 - r) * torch.rand(4, 6, 1).double()
    assert ops.mean_flow(u, torch.empty(4, 0), a.expand(4, 6, 2), e, r, t).max() < 1e-20


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
        ops.mean_flow(u, torch.empty(3, 0), a, e, r, t), expected, rtol=1e-6, atol=1e-9
    )


def test_the_reversed_diffusion_with_the_exact_noise_gives_back_the_data():
    """Data N(m, s^2): eps = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2). Many steps sample it; few are too narrow."""
    m, s = 0.3, 0.2

    def eps(obs, x, t):
        alpha, sigma = ops.vp_noise(t)
        return sigma * (x - alpha * m) / (alpha**2 * s**2 + sigma**2)

    g = torch.Generator().manual_seed(0)
    x = ops.ancestral(eps, torch.empty(8000, 0), torch.randn(8000, 1, 1000, 1, generator=g))
    assert x.mean() == pytest.approx(m, abs=0.02)
    assert x.std() == pytest.approx(s, rel=0.05)


def test_variance_is_preserved():
    alpha, sigma = ops.vp_noise(torch.linspace(0, 1, 11).double())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(11).double())


def test_a_consistency_model_is_the_identity_at_the_lowest_level():
    agent = build("cac")
    x, obs = torch.randn(B, 1, A), torch.randn(B, S)
    low = torch.full((B, 1, 1), agent.cfg.sigma_min)
    torch.testing.assert_close(agent.denoise(agent.policy, obs, x, low), x)
    assert agent.sigmas[0] == pytest.approx(agent.cfg.sigma_min)
    assert agent.sigmas[-1] == pytest.approx(agent.cfg.sigma_max)
