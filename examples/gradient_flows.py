r"""
Gradient flows side by side
===========================

Particles descend a functional F of their cloud in Wasserstein space when each of them follows

.. math:: \dot x_i = -N\,\nabla_{x_i} F(x_1, \dots, x_N), \qquad \dot F = -\tfrac1N \textstyle\sum_i |\dot x_i|^2.

Four flows from one cloud to the same data: reverse KL by the drifting field (Eq. 3), reverse KL by the blob method (an
exact gradient, which Eq. 3 is not), the maximum mean discrepancy, and the Sinkhorn divergence of optimal transport.
"""

import torch

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# Data, start and functionals
# ---------------------------
# Every functional has a ``value`` and a ``velocity``. Eq. 3 has a velocity only: it is not the gradient of a function
# of the particles.

generator = torch.Generator().manual_seed(0)
target = toy.TwoMoons(noise=0.06)
data = target.sample(300, generator=generator)
start = 0.2 * torch.randn(300, 2, generator=generator) + torch.tensor([-1.2, -1.1])
h = 0.2
kernel, scales = wg.Gaussian(h), [wg.Gaussian(s) for s in (0.2, 0.6, 2.0)]
blob, mmd = wg.BlobKL(wg.KDE(data, kernel), kernel), wg.MMD(data, scales)
sinkhorn = wg.Sinkhorn(data, blur=0.05)
drift = wg.DriftingField(kernel) / h**2

# %%
# Flow
# ----
# The functionals have different units, and so have their times: each gets a step size of its own. Compare the shapes of
# the paths, not their durations.

FLOWS = {
    "reverse KL (Eq. 3)": (lambda x: drift(x, data), 0.01, 200),
    "reverse KL (blob)": (blob, 0.01, 200),
    "MMD, three scales": (mmd, 0.2, 300),
    "Sinkhorn divergence": (sinkhorn, 0.2, 25),
}
paths = {
    name: wg.flow(v, start, solver=wg.Euler(dt), steps=steps, snapshots=steps + 1)
    for name, (v, dt, steps) in FLOWS.items()
}

# %%
# Paths
# -----
# Under KL a particle only sees data within a few bandwidths, so the particles move along the data, and the first moon
# they reach keeps too many of them. MMD leaves a few particles behind. Sinkhorn moves each one straight to its place.

figure, axes = plots.panels(*FLOWS, box=(-1.9, 1.9, -1.7, 1.5), size=2.8)
fresh = target.sample(300, generator=generator)
distances = {name: wg.w2(path.end, fresh).item() for name, path in paths.items()}
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    plots.samples(ax, data, colour=plots.COLOURS[2], label="data")
    plots.trajectories(ax, path, count=120, colour="0.7")
    plots.samples(ax, start, colour="0.4", size=3, label="start")
    plots.samples(ax, path.end, label="end")
    ax.set_xlabel(f"W2 to fresh data {distances[name]:.3f}")
axes[0].legend(loc="upper right", markerscale=2)
figure.savefig("gradient_flows.png", dpi=130)

# %%
# Descent
# -------
# An exact gradient flow lowers its functional from snapshot to snapshot.

for name, functional in zip(list(FLOWS)[1:], (blob, mmd, sinkhorn), strict=True):
    points = paths[name].points[:: len(paths[name]) // 25]
    values = torch.stack([functional.value(x) for x in points])
    rise = values.diff().max().clamp_min(0)
    print(f"{name}: {values[0]:.4f} -> {values[-1]:.4f}, largest rise {rise:.1e}")
floor = wg.w2(target.sample(300, generator=generator), fresh).item()
print("W2 to fresh data:", ", ".join(f"{name} {d:.3f}" for name, d in distances.items()))
largest, initial = max(distances.values()), wg.w2(start, fresh)
print(f"largest W2 {largest:.3f} (below 0.8; start {initial:.3f}, fresh samples {floor:.3f})")
