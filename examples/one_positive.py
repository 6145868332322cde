r"""
Cloning behaviour from one action per state
===========================================

A data set of behaviour shows each state s with a *single* action y. Then the pull of Eq. 3 forgets its kernel,

.. math:: V^+(x) = \frac{k(x, y)\,(y - x)}{k(x, y)} = y - x, \qquad \mathbb E_y V^+(x) = \mathbb E[y \mid s] - x,

whatever the bandwidth: it regresses onto the mean action, which may be one that nobody takes. A field *linear in the
positives* is unbiased under such minibatches, and clones the distribution.
"""

import torch

import wgflow as wg
from wgflow import plots

# %%
# Behaviour with two branches
# ---------------------------
# At a fork 70 % turn one way, 30 % the other. The mean action is between the branches.


def behaviour(s, n, generator):
    """n actions at each state: [B, 1] -> [B, n, 1]."""
    side = torch.where(torch.rand(len(s), n, generator=generator) < 0.7, 1.0, -1.0)
    branch = side * (0.5 + 0.25 * torch.sin(3 * s)) + 0.06 * torch.randn(
        len(s), n, generator=generator
    )
    return branch[..., None]


# %%
# Four fields, one training loop: eight generated actions per state, one positive. Nothing but the field differs.

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
# What each of them learned. Dots between the branches are the bridge that a continuous network has to cross.

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
print(
    "energy distance to the true conditional:", ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
)
print(
    f"Eq. 3 {scores['Eq. 3']:.4f} (above 0.1), energy {scores['energy']:.4f} (below 0.015; perfect {floor:.4f})"
)
