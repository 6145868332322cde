r"""
A one-step generator
====================

A field can also train a network f that turns noise into data in *one* evaluation. Each step evaluates the field at the
generated points and regresses them onto where it would move them,

.. math:: L(\theta) = \mathbb E\,\bigl|x - \mathrm{sg}(x + V(x))\bigr|^2, \qquad x = f_\theta(z),\ z \sim N(0, I)

The gradient of L in x is -2 V, so the network follows the field: the flow runs during training, not at sampling.
"""

import itertools

import torch

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# A network, a target, a field
# ----------------------------
# The noise is two-dimensional like the data, so that a picture can show how the network deforms the plane.

target = toy.SwissRoll(noise=0.03)
torch.manual_seed(0)  # of the network's weights
layers = [
    (torch.nn.Linear(a, b), torch.nn.SiLU()) for a, b in itertools.pairwise((2, 128, 128, 128, 2))
]
net = torch.nn.Sequential(*itertools.chain(*layers))[:-1]
field = wg.DriftingField(wg.Gaussian(0.1), skip_self=True)


# %%
# Train
# -----
# Each step draws fresh noise and fresh data.

generator = torch.Generator().manual_seed(0)
adam = torch.optim.Adam(net.parameters(), 2e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 1500)
for _ in range(1500):
    x = net(torch.randn(256, 2, generator=generator))
    loss = wg.drifting_loss(x, target.sample(256, generator=generator), field=field)
    adam.zero_grad()
    loss.backward()
    adam.step()
    decay.step()

# %%
# Noise and generated points
# --------------------------
# The colour of a point is the angle of its noise.

z = torch.randn(2000, 2, generator=generator)
with torch.no_grad():
    x = net(z)
figure, axes = plots.panels("noise z", "generated f(z), one step", "data")
angle = torch.atan2(z[:, 1], z[:, 0])
for ax, points in zip(axes, (z / 2.4, x), strict=False):
    ax.scatter(*points.T, c=angle, cmap="twilight", s=4, linewidths=0)
plots.samples(axes[2], target.sample(2000, generator=generator), colour="0.4", size=4)
for ax in axes:
    ax.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25))
figure.savefig("one_step_generator.png", dpi=130)

fresh = target.sample(2000, generator=generator)
distance = wg.sliced_w2(x, fresh, generator=generator).item()
floor = wg.sliced_w2(target.sample(2000, generator=generator), fresh, generator=generator).item()
print(f"sliced W2 to fresh data: {distance:.3f} (below 0.08; a perfect sampler: {floor:.3f})")
