r"""
Drifting Field Policy on a bandit
=================================

All of DFP (Koo et al. 2026) in one file, on a contextual bandit: a critic Q learns the reward, and a one-step policy
:math:`a = \pi_\theta(z, s)` follows two fields. One points to the data; the other to the best K of N candidates drawn
from an old, slowly moving copy of the policy,

.. math:: L(\theta) = \mathbb E\,|a - \mathrm{sg}(a + V_{\text{data}})|^2
          + \lambda\,\mathbb E\,|a - \mathrm{sg}(a + V_{\text{top-}K})|^2.

There is one data action per state, from which Eq. 3 would clone the mean (``one_positive.py``), so the first field is
the energy field. The second has K positives and is that of Eq. 3.
"""

import copy

import torch

import wgflow as wg
from wgflow import plots

# %%
# The bandit
# ----------
# In each state 70 % of the data go up, where the reward is at most 1/2, the others down, where it is at most 1.

generator = torch.Generator().manual_seed(0)
randn = lambda *shape: torch.randn(*shape, generator=generator)
states = lambda n: 2 * torch.rand(n, 1, generator=generator) - 1
middle = lambda s: 0.2 * torch.sin(3 * s)
hill = lambda distance: (-(distance**2) / 0.12).exp()
worth = lambda s, a: 0.5 * hill(a - middle(s) - 0.5) + hill(a - middle(s) + 0.55)  # s, a [B, n]


def behave(s):
    up = torch.rand(len(s), 1, generator=generator) < 0.7
    return middle(s) + torch.where(up, 0.5, -0.5) + 0.08 * randn(len(s), 1)


# %%
# Policy, critic, and one update of both
# --------------------------------------
# Far from the data the critic is wrong, so the old policy moves slowly: its candidates stay near the data.

torch.manual_seed(0)  # of the networks' weights
lin, silu = torch.nn.Linear, torch.nn.SiLU()
policy, critic = (
    torch.nn.Sequential(lin(inputs, 64), silu, lin(64, 64), silu, lin(64, 1)) for inputs in (3, 2)
)
adam = torch.optim.Adam([*policy.parameters(), *critic.parameters()])
join = lambda s, x: torch.cat([s[:, None].expand(-1, x.shape[1], 1), x], -1)
draw = lambda net, s, n: net(join(s, randn(len(s), n, 2)))  # [B, n, 1]
Q = lambda s, a: critic(join(s, a))[..., 0]
clone, improve = 0.1 * wg.EnergyField(), wg.DriftingField(wg.Gaussian(0.1))  # both lengths


def update(s, data, reward, old, lam, G=8, N=16, K=4):
    a = draw(policy, s, G)
    loss = wg.regress_onto(a, clone(a, data)) + (Q(s, data)[:, 0] - reward).square().mean()
    with torch.no_grad():
        candidates = draw(old, s, N)
        best = wg.top_k_weights(Q(s, candidates), k=K)
    loss = loss + lam * wg.regress_onto(a, improve(a, candidates, pos_weights=best))
    adam.zero_grad()
    loss.backward()
    adam.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(old.parameters()), list(policy.parameters()), 0.001)


# %%
# Clone, improve offline, then online
# -----------------------------------
# Online half of each batch are actions of the policy, the best of 16 by the critic; the other half remain data.

clouds, s_test, box = {}, states(1500), (-1, 1, -1.2, 1.2)
for phase, steps, lam in (("clone", 700, 0.0), ("offline", 400, 1.0), ("online", 300, 1.0)):
    old = copy.deepcopy(policy)
    for step in range(steps):
        adam.param_groups[0]["lr"] = (1 - step / steps) * (5e-3 if lam else 1e-2)
        s = states(128)
        a = behave(s)
        if phase == "online":
            own = draw(policy, s[:64], 16).detach()
            a[:64] = own[torch.arange(64), Q(s[:64], own).argmax(-1)]
        update(s, a[:, None], worth(s, a)[:, 0] + 0.1 * randn(128), old, lam)
    clouds[phase] = draw(policy, s_test, 1)[..., 0].detach()

clouds = {"data": behave(s_test)} | clouds
figure, axes = plots.panels(*clouds, box=box)
for ax, (phase, cloud) in zip(axes, clouds.items(), strict=True):
    plots.density(ax, lambda at: worth(at[:, :1], at[:, 1:])[:, 0].log(), box=box)
    at = torch.cat([s_test, cloud], -1)
    plots.samples(ax, at, colour=plots.COLOURS[2 * (phase == "data")], size=4)
    down, reward = (cloud < middle(s_test)).float().mean(), worth(s_test, cloud).mean()
    ax.set(xlabel=f"{down:.0%} down, mean reward {reward:.2f}", ylabel="action" * (phase == "data"))
figure.savefig("bandit_policy.png", dpi=130)
_, cloned, offline, online = (f"{worth(s_test, cloud).mean():.3f}" for cloud in clouds.values())
print(f"mean reward: clone {cloned}, offline {offline} (above 0.65), online {online} (above 0.85)")
