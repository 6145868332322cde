r"""
Drifting Field Policy on a bandit
=================================

All of DFP (Koo et al. 2026) in one file, on a contextual bandit: a critic Q learns the reward, and a one-step policy
:math:`a = \pi_\theta(z, s)` follows two fields. One clones the data; the other points to the best K of N candidates
drawn from a slowly moving copy of the policy,

.. math:: L(\theta) = \mathbb E\,|a - \mathrm{sg}(a + V_{\text{data}})|^2
          + \lambda\,\mathbb E\,|a - \mathrm{sg}(a + V_{\text{top-}K})|^2.

With one data action per state Eq. 3 would clone the mean action, so the first is the energy field
(``one_positive.py``).
"""

import copy

import torch

import wgflow as wg
from wgflow import plots

# %%
# The bandit
# ----------
# The context s is a point on the unit circle. Actions near 0.65 s have reward 1, those opposite have 0.5. The data
# take one of four directions at random, so the mean action has almost no reward.

PLACES = 0.65 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
generator = torch.Generator().manual_seed(0)
contexts = lambda n: torch.polar(torch.ones(n, 1), 6.2832 * torch.rand(n, 1, generator=generator))
hill = lambda u, place: (-(u - place).square().sum(-1) / 0.18).exp()
worth = lambda u: hill(u, PLACES[0]) + 0.5 * hill(u, PLACES[2])
complex_of, real_of = torch.view_as_complex, torch.view_as_real
turn = lambda u, s: real_of(s * complex_of(u))  # u [B, n, 2], by the angles of s [B, 1]


def behave(s):
    u = PLACES[torch.randint(4, (len(s), 1), generator=generator)]
    return turn(u + 0.12 * torch.randn(len(s), 1, 2, generator=generator), s)


# %%
# Policy, critic, and one update of both
# --------------------------------------

torch.manual_seed(0)  # of the networks' weights
lin, silu = torch.nn.Linear, torch.nn.SiLU()
policy, critic = (
    torch.nn.Sequential(lin(4, 96), silu, lin(96, 96), silu, lin(96, out)) for out in (2, 1)
)
old = copy.deepcopy(policy)
adam = torch.optim.Adam([*policy.parameters(), *critic.parameters()], 3e-3)
join = lambda s, x: torch.cat([real_of(s).expand(-1, x.shape[1], 2), x], -1)
draw = lambda net, s, n: net(join(s, torch.randn(len(s), n, 2, generator=generator)))
Q = lambda s, a: critic(join(s, a))[..., 0]
clone, improve = wg.EnergyField(), wg.DriftingField(wg.Gaussian(0.3))


def update(s, data, reward, lam, G=8, N=16, K=4):
    with torch.no_grad():
        candidates = draw(old, s, N)
        best = wg.top_k_weights(Q(s, candidates), k=K)
    a = draw(policy, s, G)
    towards_best = improve(a, candidates, pos_weights=best)
    actor = wg.regress_onto(a, 0.3 * clone(a, data)) + lam * wg.regress_onto(a, towards_best)
    adam.zero_grad()
    (actor + (Q(s, data)[:, 0] - reward).square().mean()).backward()
    adam.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(old.parameters()), list(policy.parameters()), 0.02)


# %%
# Offline, then online
# --------------------
# Offline the policy first only clones, then also improves. Online its own actions become the data.

clouds, s_test = {}, contexts(1500)
for phase, lam in (("clone", 0.0), ("offline", 1.0), ("online", 1.0)):
    for _ in range(300):
        s = contexts(96)
        with torch.no_grad():
            a = draw(policy, s, 1) if phase == "online" else behave(s)
            reward = worth(turn(a, s.conj()))[:, 0] + 0.1 * torch.randn(96, generator=generator)
        update(s, a, reward, lam)
    with torch.no_grad():
        clouds[phase] = turn(draw(policy, s_test, 1), s_test.conj())[:, 0]

clouds = {"data": turn(behave(s_test), s_test.conj())[:, 0]} | clouds
box = (-1.2, 1.2, -1.2, 1.2)
figure, axes = plots.panels(*clouds, box=box)
for ax, (phase, cloud) in zip(axes, clouds.items(), strict=True):
    plots.density(ax, lambda u: worth(u).log(), box=box)
    plots.samples(ax, cloud, colour=plots.COLOURS[2 if phase == "data" else 0], size=4)
    ax.set_xlabel(f"mean reward {worth(cloud).mean():.2f}")
figure.savefig("bandit_policy.png", dpi=130)
rewards = {phase: f"{worth(cloud).mean():.3f}" for phase, cloud in clouds.items()}
print("mean reward:", ", ".join(f"{phase} {reward}" for phase, reward in rewards.items()))
print(f"mean reward online {rewards['online']} (above 0.85; at most 1)")
