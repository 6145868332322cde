r"""
Drifting Field Policy on a bandit
=================================

All of DFP (Koo et al. 2026) in one file, on a contextual bandit: a critic Q learns the reward, and a one-step policy
:math:`a = \pi_\theta(z, s)` follows two fields. One clones the data; the other points to the best K of N candidates
drawn from a slowly moving copy of the policy,

.. math:: L(\theta) = \mathbb E\,|a - \mathrm{sg}(a + V_{\text{data}})|^2
          + \lambda\,\mathbb E\,|a - \mathrm{sg}(a + V_{\text{top-}K})|^2.

There is one data action per state, from which Eq. 3 would clone the mean (``one_positive.py``), so the first field is
the energy field. The second has K positives and can be Eq. 3.
"""

import copy

import torch

import wgflow as wg
from wgflow import plots

# %%
# The bandit
# ----------
# In each state s the data go up (70 %) or down. Up has reward 1/2. Down has reward 1, most of it a
# little beyond the data.

generator = torch.Generator().manual_seed(0)
randn = lambda *shape: torch.randn(*shape, generator=generator)
states = lambda n: 2 * torch.rand(n, 1, generator=generator) - 1
branch = lambda s: 0.5 + 0.25 * torch.sin(3 * s)
hill = lambda a, centre: (-((a - centre) ** 2) / 0.03).exp()
worth = lambda s, a: 0.5 * hill(a, branch(s)) + hill(a, -branch(s) - 0.08)  # s, a [B, n]


def behave(s):
    up = torch.rand(len(s), 1, generator=generator) < 0.7
    return torch.where(up, branch(s), -branch(s)) + 0.06 * randn(len(s), 1)


# %%
# Policy, critic, and one update of both
# --------------------------------------

torch.manual_seed(0)  # of the networks' weights
lin, silu = torch.nn.Linear, torch.nn.SiLU()
policy, critic = (
    torch.nn.Sequential(lin(inputs, 64), silu, lin(64, 64), silu, lin(64, 1)) for inputs in (5, 2)
)
old = copy.deepcopy(policy)
adam = torch.optim.Adam([*policy.parameters(), *critic.parameters()])
join = lambda s, x: torch.cat([s[:, None].expand(-1, x.shape[1], 1), x], -1)
draw = lambda net, s, n: net(join(s, randn(len(s), n, 4)))  # [B, n, 1]
Q = lambda s, a: critic(join(s, a))[..., 0]
clone, improve = wg.EnergyField(), wg.DriftingField(wg.Gaussian(0.2))


def update(s, data, reward, lam, G=8, N=16, K=4):
    a = draw(policy, s, G)
    actor = wg.regress_onto(a, clone(a, data))
    if lam:
        with torch.no_grad():
            candidates = draw(old, s, N)
            best = wg.top_k_weights(Q(s, candidates), k=K)
        actor = actor + lam * wg.regress_onto(a, improve(a, candidates, pos_weights=best))
    adam.zero_grad()
    (actor + (Q(s, data)[:, 0] - reward).square().mean()).backward()
    adam.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(old.parameters()), list(policy.parameters()), 0.02)


# %%
# Offline, then online
# --------------------
# Offline the policy first only clones, then also improves. Online its own actions become the data.

clouds, s_test = {}, states(1500)
for phase, steps, lam in (("clone", 700, 0.0), ("offline", 300, 2.0), ("online", 300, 2.0)):
    for step in range(steps):
        adam.param_groups[0]["lr"] = (1 - step / steps) * (1e-2 if phase == "clone" else 3e-3)
        s = states(128)
        with torch.no_grad():
            a = draw(policy, s, 1)[..., 0] if phase == "online" else behave(s)
            reward = worth(s, a)[:, 0] + 0.1 * randn(128)
        update(s, a[..., None], reward, lam)
    clouds[phase] = draw(policy, s_test, 1)[..., 0].detach()

clouds = {"data": behave(s_test)} | clouds
box = (-1, 1, -1.2, 1.2)
figure, axes = plots.panels(*clouds, box=box)
for ax, (phase, cloud) in zip(axes, clouds.items(), strict=True):
    plots.density(ax, lambda at: worth(at[:, :1], at[:, 1:])[:, 0].log(), box=box)
    colour = plots.COLOURS[2 if phase == "data" else 0]
    plots.samples(ax, torch.cat([s_test, cloud], -1), colour=colour, size=4)
    ax.set_xlabel(f"mean reward {worth(s_test, cloud).mean():.2f}")
figure.savefig("bandit_policy.png", dpi=130)
data, cloned, offline, online = (f"{worth(s_test, cloud).mean():.3f}" for cloud in clouds.values())
print(f"mean reward: data {data}, clone {cloned}, offline {offline}, online {online} (above 0.9)")
