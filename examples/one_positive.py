r"""
Cloning behaviour from one action per state
===========================================

Recorded behaviour has each state s with a *single* action y. Then the kernel cancels in the attraction of Eq. 3,

.. math:: V^+(x) = \frac{k(x, y)\,(y - x)}{k(x, y)} = y - x, \qquad \mathbb E_y V^+(x) = \mathbb E[y \mid s] - x,

whatever the bandwidth: the policy regresses onto the mean action, which may be one that nobody takes. A field that is
*linear in the positives* is unbiased under such minibatches and clones the distribution.
"""

import torch

import wgflow as wg
from wgflow import plots

# %%
# Behaviour with two branches
# ---------------------------
# At a fork 70 % of the actions go one way and 30 % the other. The mean action is between the branches.


def behaviour(s, n, generator):
    """n actions at each state: [B, 1] -> [B, n, 1]."""
    side = torch.where(torch.rand(len(s), n, generator=generator) < 0.7, 1.0, -1.0)
    noise = torch.randn(len(s), n, generator=generator)
    return (side * (0.5 + 0.25 * torch.sin(3 * s)) + 0.06 * noise)[..., None]


# %%
# Four fields, one training loop
# ------------------------------
# Eight generated actions and one positive per state; nothing but the field differs.

FIELDS = {
    "Eq. 3": wg.DriftingField(wg.Gaussian(0.2)),
    "published": wg.PublishedField(temperatures=(0.1,)),
    "likelihood": wg.LikelihoodField(wg.Gaussian(0.15)),
    "energy": wg.EnergyField(),
}


def train(field, steps=1000, batch=128, group=8):
    torch.manual_seed(0)  # of the network's weights
    generator = torch.Generator().manual_seed(0)
    lin, silu = torch.nn.Linear, torch.nn.SiLU()
    net = torch.nn.Sequential(lin(5, 64), silu, lin(64, 64), silu, lin(64, 1))

    def policy(s, n):
        z = torch.randn(len(s), n, 4, generator=generator)
        return net(torch.cat([s[:, None].expand(-1, n, 1), z], -1))

    adam = torch.optim.Adam(net.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        s = 2 * torch.rand(batch, 1, generator=generator) - 1
        loss = wg.drifting_loss(policy(s, group), behaviour(s, 1, generator), field=field)
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return policy


policies = {name: train(field) for name, field in FIELDS.items()}

# %%
# Result
# ------
# Dots between the branches form the bridge that a continuous network cannot avoid.

generator = torch.Generator().manual_seed(1)
s = 2 * torch.rand(1500, 1, generator=generator) - 1
figure, axes = plots.panels("behaviour", *FIELDS, box=(-1, 1, -1, 1))
truth = behaviour(s, 1, generator)
plots.samples(axes[0], torch.cat([s, truth[:, 0]], -1), colour=plots.COLOURS[2])
states, scores = torch.linspace(-0.95, 0.95, 32)[:, None], {}
with torch.no_grad():
    for ax, (name, policy) in zip(axes[1:], policies.items(), strict=True):
        plots.samples(ax, torch.cat([s, policy(s, 1)[:, 0]], -1))
        actions = policy(states, 256), behaviour(states, 256, generator)
        scores[name] = wg.energy_distance(*actions).mean().item()
        ax.set_xlabel(f"energy distance {scores[name]:.3f}")
axes[0].set(xlabel="state", ylabel="action")
figure.savefig("one_positive.png", dpi=130)

actions = behaviour(states, 256, generator), behaviour(states, 256, generator)
floor = wg.energy_distance(*actions).mean().item()
found = {name: f"{score:.4f}" for name, score in scores.items()}
print("energy distance to the truth:", ", ".join(f"{k} {v}" for k, v in found.items()))
print(
    f"Eq. 3 {found['Eq. 3']} (above 0.1), energy {found['energy']} (below 0.015; floor {floor:.4f})"
)
