"""The loss of every method is the equation of its paper, in value and in gradient.

Each equation is written out here. What could be mistaken for one another differs: the twin critics, target and online
networks, states before and after normalisation, samples and their clipped copies, known and unknown targets.
"""

import copy

import pytest
import torch
from torch.testing import assert_close

import wgflow as wg
from tests.small_agents import A, B, build, make_batch, noise_for
from wgflow_rl.agents import fields, presets

H = 2  # actions per chunk
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, 3.0])


def scene(method, **numbers):
    """An agent in float64, a batch, its noise, and its normalised states."""
    agent = build(method, chunk=H, standardise=True, obs_mean=MEAN, obs_std=STD, **numbers)
    for name in ("policy", "old_policy", "target_policy", "flow", "diffusion", "fast", "slow"):
        if hasattr(agent, name):
            last = getattr(agent, name).net.rest[-1]
            last.weight.data *= 2  # so that samples leave the box
    for name in ("critic", "target_critic"):
        if hasattr(agent, name):
            for number, net in enumerate(getattr(agent, name).nets):
                net.rest[-1].bias.data += 0.4 - 0.2 * number
    agent.double()
    batch = make_batch(H)
    batch.valid[1, 1] = batch.valid[4, 1] = 0  # two trajectories end inside the chunk,
    batch.complete[1] = 0  # one of them with an unknown target,
    batch.discount[4] = 0  # one at the end of the task
    batch.next_valid[2] = 0
    batch.next_valid[3, 1] = 0
    batch = type(batch)(*(t.double() for t in batch))
    noise = noise_for(agent)
    noise = type(noise)(*(t.double() for t in noise))
    return agent, batch, noise, (batch.obs - MEAN) / STD, (batch.next_obs - MEAN) / STD


def assert_is_the_loss(expected, agent, batch, noise, *, online):
    """Compare the loss and its gradients in all weights, absent ones included."""
    loss, _ = agent.loss(batch, noise, online=online)
    assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    weights = dict(agent.named_parameters())
    moved = {name: p for name, p in weights.items() if p.requires_grad}
    found, wanted = (
        dict(
            zip(
                moved,
                torch.autograd.grad(value, list(moved.values()), allow_unused=True),
                strict=True,
            )
        )
        for value in (loss, expected)
    )
    for name in moved:
        a, b = (
            torch.zeros_like(moved[name]) if g is None else g for g in (found[name], wanted[name])
        )
        assert_close(a, b, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


# ---- parts of the equations ----------------------------------------------------------------------------------------


def still(module):
    """The same function without a gradient in its weights."""
    return copy.deepcopy(module).requires_grad_(False)


def outside(chunks):
    """The chunks, some of whose coordinates must be outside the box."""
    assert (chunks.abs() > 1).any()
    assert (chunks.abs() < 1).any()
    return chunks


def td(agent, batch, s, value):
    """(Q_i(s, a) - R - gamma^h V(s'))^2 over both critics and the chunks with a known target, divided by all chunks."""
    y = (batch.returns + batch.discount * value).detach()
    errors = [
        (q[:, 0] - y) ** 2 * batch.complete
        for q in agent.critic(s, batch.actions.reshape(B, 1, -1))
    ]
    return (errors[0].sum() + errors[1].sum()) / (2 * B)


def best_next_value(agent, s_next, chunks):
    """mean_i Q'_i(s', a') at the chunk that the mean of the online critics likes best, all inside the box."""
    chunks = outside(chunks).clamp(-1, 1)
    q, target = (sum(net(s_next, chunks)) / 2 for net in (agent.critic, agent.target_critic))
    return target[torch.arange(B), q.argmax(1)].detach()


def implicit_q(agent, batch, s, s_next):
    """IQL Eq. 5 and 6: V is the tau-expectile of min_i Q'_i(s, a), and the bootstrap of both critics."""
    data = batch.actions.reshape(B, 1, -1)
    q = agent.target_critic(s, data)[..., 0]
    assert 0 < (q[0] < q[1]).sum() < B
    u = torch.minimum(*q).detach() - agent.value(s)
    tau = agent.cfg.expectile
    assert 0 < (u < 0).sum() < B
    loss = (tau - (u < 0).double()).abs() * u**2 * batch.complete
    return td(agent, batch, s, still(agent.value)(s_next)) + loss.mean()


def euler(velocity, s, x, steps):
    for i in range(steps):
        x = x + velocity(s, x, torch.full_like(x[..., :1], i / steps)) / steps
    return x


def on_data(error, batch):
    """Mean over coordinates, with those after the end of the trajectory as zeros."""
    return (error * batch.valid.repeat_interleave(A, 1)[:, None]).mean()


def flow_matching(velocity, s, batch, x0, t):
    """|v(s, (1 - t) x_0 + t a, t) - (a - x_0)|^2, elementwise."""
    a = batch.actions.reshape(B, 1, -1)
    return (velocity(s, x0 + t * (a - x0), t) - a + x0) ** 2


def process(t):
    """(alpha_t, sigma_t) for beta(t) = .1 + 19.9 t: alpha_t^2 = exp(-int_0^t beta)."""
    alpha2 = (-(0.1 * t + 19.9 * t**2 / 2)).exp()
    return alpha2.sqrt(), (1 - alpha2).sqrt()


def noise_prediction(eps, s, batch, e, t):
    alpha, sigma = process(t)
    return (eps(s, alpha * batch.actions.reshape(B, 1, -1) + sigma * e, t) - e) ** 2


def scaled(q):
    """mean Q / mean |Q|, the denominator without gradient (TD3+BC)."""
    assert (q > 0).any()
    assert (q < 0).any()
    return q.mean() / q.abs().mean().detach()


def capped(advantage, alpha):
    """min(exp(alpha A), 100)."""
    weight = (alpha * advantage).exp()
    assert (weight > 100).any()
    assert (weight < 100).any()
    return torch.minimum(weight, torch.tensor(100.0))


both_phases = pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])


# ---- methods -------------------------------------------------------------------------------------------------------


def test_bc():
    agent, batch, noise, s, _ = scene("bc")
    loss = on_data((agent.policy(s) - batch.actions.reshape(B, 1, -1)) ** 2, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


@pytest.mark.parametrize("field", ["energy:0.5", "likelihood:0.2+energy"])
def test_drift_bc(field):
    """|a_hat - sg(a_hat + V)|^2 per coordinate, V at the samples of one state towards its chunk (DFP Eq. 18)."""
    agent, batch, noise, s, _ = scene("drift-bc", field=field)
    known = batch.valid.repeat_interleave(A, 1)[:, None]
    a_hat = agent.policy(s, noise.generated) * known
    V = fields.parse(field)(a_hat.detach(), batch.actions.reshape(B, 1, -1) * known)
    loss = ((a_hat - (a_hat + V).detach()) ** 2).mean()
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_flow_bc():
    agent, batch, noise, s, _ = scene("flow-bc", generated=3)
    loss = on_data(flow_matching(agent.flow, s, batch, noise.x0, noise.time), batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mean_flow_bc(share):
    """The MeanFlow identity, with r = t for a share of the draws; du/dt by a small step along the path."""
    agent, batch, noise, s, _ = scene(
        "meanflow-bc", generated=4, same_times=share, time_mean=-0.4, time_std=0.8
    )
    u, d, a, e = agent.policy.u, 1e-5, batch.actions.reshape(B, 1, -1), noise.e
    r, t = (1 / (1 + (0.4 - 0.8 * noise.times).exp())).sort(-1).values.split(1, -1)
    r = torch.where(noise.same < share, t, r)
    assert (r == t).any() == (share > 0)
    z, v = (1 - t) * a + t * e, e - a
    slope = (u(s, z + d * v, r, t + d) - u(s, z - d * v, r, t - d)) / (2 * d)
    loss = on_data((u(s, z, r, t) - (v - (t - r) * slope).detach()) ** 2, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


@pytest.mark.parametrize("samples", [1, 3])
def test_bfn(samples):
    agent, batch, noise, s, s_next = scene("qc-bfn", target_samples=samples)
    value = best_next_value(agent, s_next, euler(agent.flow, s_next, noise.target, 3))
    flow = flow_matching(agent.flow, s, batch, noise.flow, noise.time)
    loss = td(agent, batch, s, value) + on_data(flow, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_fql():
    """The student climbs the mean of the critics and is not clipped in the distillation."""
    agent, batch, noise, s, s_next = scene("qc-fql", alpha=3.0)
    value = best_next_value(agent, s_next, agent.policy(s_next, noise.target))
    flow = flow_matching(agent.flow, s, batch, noise.flow, noise.time)
    teacher = outside(euler(agent.flow, s, noise.student, 3)).clamp(-1, 1).detach()
    student = outside(agent.policy(s, noise.student))
    q = sum(still(agent.critic)(s, student.clamp(-1, 1))) / 2
    distill = ((student - teacher) ** 2).mean()
    loss = td(agent, batch, s, value) + on_data(flow, batch) + 3 * distill - q.mean()
    assert_is_the_loss(loss, agent, batch, noise, online=False)


@both_phases
@pytest.mark.parametrize("ivc", [0.0, 0.7])
def test_mvp(online, ivc):
    """MeanFlow on the data and, online, on the K best of the old policy; du/dt by a small step along the path."""
    agent, batch, noise, s, s_next = scene(
        "mvp-topk", lam=0.3, ivc=ivc, time_mean=-0.4, time_std=0.8
    )
    u, d = agent.policy.u, 1e-5

    def mean_flow(a, e, times):
        r, t = (1 / (1 + (0.4 - 0.8 * times).exp())).sort(-1).values.split(1, -1)
        z, v = (1 - t) * a + t * e, e - a
        slope = (u(s, z + d * v, r, t + d) - u(s, z - d * v, r, t - d)) / (2 * d)
        instant = (u(s, (1 - r) * a + r * e, r, r) - v) ** 2
        return (u(s, z, r, t) - (v - (t - r) * slope).detach()) ** 2 + ivc * instant

    data = batch.actions.reshape(B, 1, -1)
    value = best_next_value(agent, s_next, agent.policy(s_next, noise.target))
    loss = td(agent, batch, s, value) + on_data(
        mean_flow(data, noise.data, noise.data_times), batch
    )
    if online:
        best = best_of_the_old(agent, s, noise).clamp(-1, 1)
        loss = loss + 0.3 * mean_flow(best, noise.positives, noise.positive_times).mean()
    assert_is_the_loss(loss, agent, batch, noise, online=online)


def best_of_the_old(agent, s, noise):
    """The K best samples of the old policy, not clipped, by the mean of the online critics in the box (DFP Eq. 15)."""
    pool = outside(agent.old_policy(s, noise.candidates)).detach()
    q = sum(agent.critic(s, pool.clamp(-1, 1))) / 2
    order = q.argsort(1, descending=True)[:, : agent.cfg.top_k]
    assert not torch.equal(q.argmax(1), sum(agent.critic(s, pool)).argmax(1))
    return pool.gather(1, order[..., None].expand(-1, -1, pool.shape[-1]))


@both_phases
@pytest.mark.parametrize("positives", ["topk", "boltzmann", "matched"])
def test_dfp(online, positives):
    """DFP Eqs. 16 and 18 with a field and a weight of its own for each term and phase.

    The positives are the K best of the candidates, or all of them weighted by exp(Q / alpha): alpha = .3, or of each
    state that whose weights are nearest to the K best.
    """
    numbers = {"generated": 4, "lam": 0.3, "lam_offline": 0.8, "temperature": 0.3}
    agent, batch, noise, s, s_next = scene(
        "dfp", field="energy", improve_field="likelihood", positives=positives, **numbers
    )
    a_hat = outside(agent.policy(s, noise.generated))
    mask = batch.valid.repeat_interleave(A, 1)[:, None]
    data, best, weights = batch.actions.reshape(B, 1, -1), best_of_the_old(agent, s, noise), None
    if positives != "topk":
        best = agent.old_policy(s, noise.candidates).detach()
        q = (sum(agent.critic(s, best.clamp(-1, 1))) / 2).detach()
        nearest, _ = wg.matched_temperature(q, k=agent.cfg.top_k)
        alpha = 0.3 if positives == "boltzmann" else nearest[:, None]
        weights = (q / alpha).softmax(-1)
    to_data = fields.parse("energy")((a_hat * mask).detach(), data * mask)
    to_best = fields.parse("likelihood")(a_hat.detach(), best, pos_weights=weights)
    value = best_next_value(agent, s_next, agent.policy(s_next, noise.target))
    loss = td(agent, batch, s, value) + wg.regress_onto(a_hat * mask, to_data)
    loss = loss + (0.3 if online else 0.8) * wg.regress_onto(a_hat, to_best)
    assert_is_the_loss(loss, agent, batch, noise, online=online)


@both_phases
def test_dfp_repelled_by_the_worst_and_led_by_values(online):
    """The K worst candidates as negatives of the top-K term; the ascent of Q, as in TD3+BC, beside both."""
    agent, batch, noise, s, s_next = scene(
        "dfp",
        field="energy",
        improve_field="energy:0.5",
        generated=4,
        repulsion=0.6,
        lam=0.3,
        lam_offline=0.8,
        q_weight=0.2,
        q_weight_offline=0.7,
    )
    a_hat = outside(agent.policy(s, noise.generated))
    mask = batch.valid.repeat_interleave(A, 1)[:, None]
    data, best = batch.actions.reshape(B, 1, -1), best_of_the_old(agent, s, noise)
    pool = agent.old_policy(s, noise.candidates).detach()
    value = sum(agent.critic(s, pool.clamp(-1, 1))) / 2
    order = (-value).topk(agent.cfg.top_k).indices  # corners of the box tie
    worst = pool.gather(1, order[..., None].expand(-1, -1, pool.shape[-1]))
    x, root = a_hat.detach(), fields.parse("energy:0.5")
    V = root(x, best) + 0.6 * root(x, best, neg=worst)
    to_data = fields.parse("energy")((a_hat * mask).detach(), data * mask)
    value = best_next_value(agent, s_next, agent.policy(s_next, noise.target))
    loss = td(agent, batch, s, value) + wg.regress_onto(a_hat * mask, to_data)
    loss = loss + (0.3 if online else 0.8) * wg.regress_onto(a_hat, V)
    q = sum(still(agent.critic)(s, a_hat.clamp(-1, 1))) / 2
    loss = loss - (0.2 if online else 0.7) * scaled(q)
    assert_is_the_loss(loss, agent, batch, noise, online=online)


def test_iql():
    agent, batch, noise, s, s_next = scene("iql", expectile=0.8, alpha=12.0)
    data = batch.actions.reshape(B, 1, -1)
    advantage = torch.minimum(*agent.target_critic(s, data)[..., 0]) - agent.value(s)
    weight = capped(advantage, 12.0).detach() * batch.complete
    error = (agent.policy(s) - data) ** 2 / 2
    loss = implicit_q(agent, batch, s, s_next) + on_data(weight[:, None, None] * error, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_idql():
    """The diffusion learns at the M times i/M, i = 1 ... M, that sampling uses."""
    agent, batch, noise, s, s_next = scene("idql", expectile=0.8, diffusion_steps=4)
    t = (noise.time * 4).ceil() / 4
    error = noise_prediction(agent.diffusion, s, batch, noise.diffusion, t)
    loss = implicit_q(agent, batch, s, s_next) + on_data(error, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_ifql():
    agent, batch, noise, s, s_next = scene("ifql", expectile=0.8)
    error = flow_matching(agent.flow, s, batch, noise.flow, noise.time)
    loss = implicit_q(agent, batch, s, s_next) + on_data(error, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_fawac():
    """A = Q(s, a) - Q(s, a') by the mean of the online critics, a' of the policy; no gradient through the weight."""
    agent, batch, noise, s, s_next = scene("fawac", alpha=9.0)
    own = outside(euler(agent.flow, s, noise.policy, 3)).clamp(-1, 1)
    q = [sum(agent.critic(s, a))[:, 0] / 2 for a in (batch.actions.reshape(B, 1, -1), own)]
    weight = capped(q[0] - q[1], 9.0).detach() * batch.complete
    error = flow_matching(agent.flow, s, batch, noise.flow, noise.time)
    value = best_next_value(agent, s_next, euler(agent.flow, s_next, noise.target, 3))
    loss = td(agent, batch, s, value) + on_data(weight[:, None, None] * error, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_fbrac():
    """The gradient of the mean of the critics passes through every Euler step."""
    agent, batch, noise, s, s_next = scene("fbrac", alpha=0.7)
    chunk = outside(euler(agent.flow, s, noise.policy, 3)).clamp(-1, 1)
    q = sum(still(agent.critic)(s, chunk)) / 2
    flow = flow_matching(agent.flow, s, batch, noise.flow, noise.time)
    value = best_next_value(agent, s_next, euler(agent.flow, s_next, noise.target, 3))
    loss = td(agent, batch, s, value) - scaled(q) + 0.7 * on_data(flow, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_rebrac():
    """a' is smoothed by clipped noise; the penalty counts known next actions; both policies take the lower critic."""
    numbers = {"actor_penalty": 0.3, "critic_penalty": 0.2, "target_noise": 0.4, "noise_clip": 0.5}
    agent, batch, noise, s, s_next = scene("rebrac", **numbers)
    smooth = 0.4 * noise.target
    assert (smooth.abs() > 0.5).any()
    a_next = outside(agent.target_policy(s_next).tanh() + smooth.clamp(-0.5, 0.5)).clamp(-1, 1)
    known = batch.next_valid.repeat_interleave(A, 1)
    penalty = ((a_next[:, 0] - batch.next_actions.reshape(B, -1)) ** 2 * known).sum(1)
    value = torch.minimum(*agent.target_critic(s_next, a_next))[:, 0] - 0.2 * penalty
    chunk = agent.policy(s).tanh()
    q = torch.minimum(*still(agent.critic)(s, chunk))
    bc = B * H * A * on_data((chunk - batch.actions.reshape(B, 1, -1)) ** 2, batch) / B
    loss = td(agent, batch, s, value) + 0.3 * bc - scaled(q)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_srpo():
    """<sigma_t^2 (eps(s, a_t, t) - e), pi(s)> / beta at times in [.02, .98], without the diffusion's own derivative."""
    agent, batch, noise, s, s_next = scene("srpo", expectile=0.8, beta=0.3)
    chunk = outside(agent.policy(s))
    t, t_data = (0.02 + 0.96 * time for time in (noise.score_time, noise.diffusion_time))
    alpha, sigma = process(t)
    pull = sigma**2 * (agent.diffusion(s, alpha * chunk + sigma * noise.score, t) - noise.score)
    q = sum(still(agent.critic)(s, chunk.clamp(-1, 1))) / 2
    policy = (pull.detach() * chunk).sum(-1).mean() / 0.3 - scaled(q)
    diffusion = noise_prediction(agent.diffusion, s, batch, noise.diffusion, t_data)
    loss = implicit_q(agent, batch, s, s_next) + policy + on_data(diffusion, batch)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def test_cac():
    """Consistency between neighbouring noise levels, and the lower critic at an action of two evaluations."""
    agent, batch, noise, s, s_next = scene("cac", eta=0.4, levels=5, sigma_max=9.0, sigma_min=0.1)
    for policy in (agent.policy, agent.target_policy):
        policy.net.rest[-1].weight.data *= 4
    levels = [(0.1 ** (1 / 7) + i / 4 * (9 ** (1 / 7) - 0.1 ** (1 / 7))) ** 7 for i in range(5)]
    levels = torch.tensor(levels).double()  # the agent keeps them in float32

    def f(policy, s, x, level):
        """Karras et al. 2022 with deviation .5 of the data, shifted to be the identity at the lowest level."""
        level = level * torch.ones_like(x[..., :1])
        skip, out = (
            0.25 / ((level - 0.1) ** 2 + 0.25),
            0.5 * (level - 0.1) / (level**2 + 0.25).sqrt(),
        )
        return skip * x + out * policy(s, x / (level**2 + 0.25).sqrt(), level.log() / 4)

    def generate(policy, s, z):
        x = outside(f(policy, s, 9 * z[..., 0, :], levels[4])).clamp(-1, 1)
        return outside(f(policy, s, x + (levels[2] ** 2 - 0.01).sqrt() * z[..., 1, :], levels[2]))

    n = (noise.level * 4).floor().long()
    assert set(n.flatten().tolist()) == {0, 1, 2, 3}
    data = batch.actions.reshape(B, 1, -1)
    student = f(agent.policy, s, data + levels[n + 1] * noise.data, levels[n + 1])
    teacher = f(agent.target_policy, s, data + levels[n] * noise.data, levels[n])
    a_next = generate(agent.target_policy, s_next, noise.target).clamp(-1, 1)
    value = torch.minimum(*agent.target_critic(s_next, a_next))[:, 0]
    q = torch.minimum(*still(agent.critic)(s, generate(agent.policy, s, noise.policy).clamp(-1, 1)))
    loss = td(agent, batch, s, value) + on_data((student - teacher.detach()) ** 2, batch)
    assert_is_the_loss(loss - 0.4 * scaled(q), agent, batch, noise, online=False)


@pytest.mark.parametrize(("kernel", "target"), [("gaussian", "mean"), ("laplace", "min")])
def test_driftql(kernel, target):
    """V_j = a - sum_{k != j} w_jk a_hat_k with w a softmax of distances over sqrt(C); clipped samples and targets."""
    agent, batch, noise, s, s_next = scene(
        "driftql", generated=5, alpha=3.0, temperature=0.4, kernel=kernel, target=target
    )
    known = batch.valid.repeat_interleave(A, 1)[:, None]
    a_hat = outside(agent.policy(s, noise.generated)).clamp(-1, 1) * known
    d = (a_hat[:, :, None] - a_hat[:, None]).norm(dim=-1) / (H * A) ** 0.5
    logit = -d / 0.4 if kernel == "laplace" else -((d / 0.4) ** 2) / 2
    w = logit.masked_fill(torch.eye(5, dtype=bool), -torch.inf).softmax(-1)
    V = batch.actions.reshape(B, 1, -1) * known - w @ a_hat
    drift = ((a_hat - outside(a_hat + V).clamp(-1, 1).detach()) ** 2).mean()
    own = outside(agent.policy(s, noise.policy)).clamp(-1, 1)
    q = sum(still(agent.critic)(s, own)) / 2
    a_next = agent.policy(s_next, noise.target).clamp(-1, 1)
    both = agent.target_critic(s_next, a_next)[..., 0]
    value = both.mean(0) if target == "mean" else torch.minimum(*both)
    loss = td(agent, batch, s, value) + 3 * drift - q.mean()
    assert_is_the_loss(loss, agent, batch, noise, online=False)


def edited(agent, flow, s, z):
    """The edited chunk and the log density of its edit, by torch.distributions."""
    a = euler(flow, s, z[..., 0, :], agent.cfg.flow_steps).clamp(-1, 1).detach()
    mean, log_std = agent.editor.net(s, a).chunk(2, -1)
    u = mean + log_std.clamp(-20, 2).exp() * z[..., 1, :]
    squash = torch.distributions.TanhTransform()
    normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
    log_density = normal.log_prob(u) - squash.log_abs_det_jacobian(u, u.tanh())
    return (a + agent.cfg.edit_scale * u.tanh()).clamp(-1, 1), log_density.sum(-1)


def pessimistic(agent, s_next, a_next):
    """mean - rho std over the target critics, the standard deviation that of a population."""
    q = agent.target_critic(s_next, a_next)[..., 0].detach()
    return q.mean(0) - agent.cfg.pessimism * (q - q.mean(0)).square().mean(0).sqrt()


def edit_loss(agent, flow, s, z):
    """-Q + alpha log pi for the editor, alpha (entropy - target) for alpha, entropy target -C / 2."""
    a, log_density = edited(agent, flow, s, z)
    q = sum(still(agent.critic)(s, a)) / agent.cfg.critics
    alpha = agent.editor.log_temperature.exp()
    temperature = alpha * (-log_density.mean().detach() + H * A / 2)
    return alpha.detach() * log_density.mean() - q.mean() + temperature


def test_fedit():
    agent, batch, noise, s, s_next = scene("fedit", critics=2, edit_scale=0.3, pessimism=0.7)
    agent.editor.log_temperature.data += 0.5
    value = pessimistic(agent, s_next, edited(agent, agent.flow, s_next, noise.target)[0])
    flow = on_data(flow_matching(agent.flow, s, batch, noise.flow, noise.time), batch)
    loss = td(agent, batch, s, value) + flow + edit_loss(agent, agent.flow, s, noise.policy)
    assert_is_the_loss(loss, agent, batch, noise, online=False)


@pytest.mark.parametrize("scale", [0.0, 0.3], ids=["qam", "qam-e"])
def test_qam(scale):
    """The adjoint by Jacobian matrices, backwards along the path; with an edit of the tilted flow, QAM-E."""
    agent, batch, noise, s, s_next = scene(
        "qam", critics=2, edit_scale=scale, inverse_temperature=2.0, flow_steps=4
    )
    for p in agent.slow.parameters():  # a target network that lags
        p.data += 0.05
    n, h = 4, 1 / 4
    sigma = [((2 * (1 - i * h + h)) / (i * h + h)) ** 0.5 for i in range(n)]
    v = lambda net, x, t: net(s, x, torch.full_like(x[..., :1], t))
    xs = [noise.path[..., 0, :]]
    for i in range(n - 1):
        x = xs[-1]
        drift = 2 * v(agent.fast, x, i * h) - x / ((i + 1) * h)
        xs.append((x + h * drift + h**0.5 * sigma[i] * noise.path[..., i + 1, :]).detach())
    xs.append((xs[-1] + h * v(agent.slow, xs[-1], 1 - h)).detach())
    end = outside(xs[-1]).requires_grad_()
    q = sum(agent.target_critic(s, end.clamp(-1, 1))) / 2
    g = -2 * torch.autograd.grad(q.sum(), end)[0]
    assert (g == 0).any()
    adjoint = 0
    for i in reversed(range(n)):
        drift = lambda x, t=(i + 1) * h: (2 * v(agent.slow, x, t) - x / t).sum((0, 1))
        J = torch.autograd.functional.jacobian(drift, xs[i])
        g = g + h * torch.einsum("cbnd,bnc->bnd", J, g)
        gap = v(agent.fast, xs[i], i * h) - v(agent.slow, xs[i], i * h)
        adjoint = adjoint + ((2 / sigma[i] * gap + sigma[i] * g) ** 2).sum(-1).mean()
    loss = adjoint + on_data(flow_matching(agent.flow, s, batch, noise.flow, noise.time), batch)
    if scale:
        a_next = edited(agent, agent.fast, s_next, noise.target)[0]
        loss = loss + edit_loss(agent, agent.fast, s, noise.policy)
    else:
        a_next = euler(agent.fast, s_next, noise.target[..., 0, :], n).clamp(-1, 1)
    loss = loss + td(agent, batch, s, pessimistic(agent, s_next, a_next))
    assert_is_the_loss(loss, agent, batch, noise, online=False)


class Linear(torch.nn.Module):
    """The velocity of the flow that leaves N(0, I) as it is, and a shift per time."""

    def __init__(self, shift=lambda t: 0.0):
        super().__init__()
        self.shift = shift

    def forward(self, s, x, t):
        return (2 * t - 1) * x / (t**2 + (1 - t) ** 2) + self.shift(t)


@pytest.mark.parametrize(("n", "mean"), [(10, 0.8792233), (100, 0.968456), (1000, 0.994515)])
def test_adjoint_matching_tilts_a_gaussian(n, mean):
    """With Q = c a and behaviour N(0, I), the loss is 0 at v_slow - sigma^2 g / 2, a flow to N(beta c, I) for large n.

    The adjoint does not depend on the path: g_i = -beta c prod_{j >= i} (1 + J_j / n). Ten steps reach .88 of beta c.
    """
    agent, _, _, s, _ = scene("qam", critics=2, inverse_temperature=1.0, flow_steps=n)
    agent.target_critic.forward = lambda s, a: torch.stack([1e-3 * a.sum(-1)] * 2)
    t = torch.arange(1, n + 1).double() / n
    J = 2 * (2 * t - 1) / (t**2 + (1 - t) ** 2) - 1 / t
    g = -1e-3 * (1 + J / n).flip(0).cumprod(0).flip(0)
    sigma2 = 2 * (1 - t + 2 / n) / t
    shift = -sigma2 * g / 2
    agent.slow = Linear()
    agent.fast = Linear(lambda t: shift[(t * n).round().long()])
    g = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(B, 1, n, H * A, dtype=torch.float64, generator=g)
    assert (agent.path(s, noise)[-1].abs() < 1).all()
    assert agent.adjoint_loss(s, noise) < 1e-20
    end = euler(agent.fast, s, torch.zeros(1, 1, H * A, dtype=torch.float64), n)
    assert_close(end, torch.full_like(end, 1e-3 * mean), rtol=1e-5, atol=0)


def test_every_method_is_here():
    kinds = {
        type(presets.ROWS[name]).__name__.removesuffix("Config").lower() for name in presets.METHODS
    }
    assert {name.removeprefix("test_").replace("_", "") for name in globals()} >= kinds
