r"""
Gradient flows side by side
===========================

Particles descend a functional F of their cloud in Wasserstein space when each of them follows

.. math:: \dot x_i = -N\,\nabla_{x_i} F(x_1, \dots, x_N), \qquad \dot F = -\tfrac1N \textstyle\sum_i |\dot x_i|^2.

Four ways from one cloud to the same data: reverse KL by the drift of Eq. 3, its blob discretisation (an exact
gradient, which Eq. 3 is not), the maximum mean discrepancy, and the Sinkhorn divergence of optimal transport.
"""

import torch

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# Data, start, functionals
# ------------------------
# Every functional has a ``value`` and a ``velocity``. Eq. 3 has only a velocity: it is the gradient of no functional of
# the particles. (``Sinkhorn`` needs geomloss: ``pip install wgflow[ot]``.)

generator = torch.Generator().manual_seed(0)
target = toy.TwoMoons(noise=0.06)
data = target.sample(300, generator=generator)
start = 0.2 * torch.randn(300, 2, generator=generator) + torch.tensor([-1.2, -1.1])
h = 0.2
kernel, scales = wg.Gaussian(h), [wg.Gaussian(s) for s in (0.2, 0.6, 2.0)]
blob, mmd, sinkhorn = (
    wg.BlobKL(wg.KDE(data, kernel), kernel),
    wg.MMD(data, scales),
    wg.Sinkhorn(data, blur=0.05),
)


def drift(x):
    return wg.drifting_field(x, data, x, kernel=kernel) / h**2


# %%
# Flow
# ----
# Time has no common unit across functionals, so each gets the step that suits it: how paths bend can be compared, how
# long they take cannot.

FLOWS = {
    "reverse KL (Eq. 3)": (drift, 0.01, 200),
    "reverse KL (blob)": (blob, 0.01, 200),
    "MMD, three scales": (mmd, 0.2, 300),
    "Sinkhorn divergence": (sinkhorn, 0.2, 25),
}
paths = {
    name: wg.flow(v, start, solver=wg.Euler(dt), steps=steps, snapshots=steps + 1)
    for name, (v, dt, steps) in FLOWS.items()
}

# %%
# Their paths
# -----------
# The KL flows crawl along the data, which they feel within a bandwidth, and still have too many particles on the moon
# they met first; MMD leaves a few behind; Sinkhorn moves each particle straight to its place.

figure, axes = plots.panels(*FLOWS, box=(-1.9, 1.9, -1.6, 1.4), size=2.8)
fresh = target.sample(300, generator=generator)
distances = {name: wg.w2(path.end, fresh).item() for name, path in paths.items()}
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    plots.samples(ax, data, colour=plots.COLOURS[2])
    plots.trajectories(ax, path, count=120, colour="0.5")
    plots.samples(ax, start, colour="0.5", size=3)
    plots.samples(ax, path.end)
    ax.set_xlabel(f"W2 to fresh data {distances[name]:.3f}")
figure.savefig("gradient_flows.png", dpi=130)

# %%
# Do they descend?
# ----------------
# The exact gradients must lower their own value at every snapshot.

for name, functional in zip(list(FLOWS)[1:], (blob, mmd, sinkhorn), strict=True):
    values = torch.stack(
        [functional.value(x) for x in paths[name].points[:: len(paths[name]) // 25]]
    )
    print(
        f"{name}: {values[0]:.4f} -> {values[-1]:.4f}, largest rise {values.diff().max().clamp_min(0):.1e}"
    )
floor = wg.w2(target.sample(300, generator=generator), fresh).item()
print("W2 to fresh data:", ", ".join(f"{name} {d:.3f}" for name, d in distances.items()))
print(
    f"largest W2 {max(distances.values()):.3f} (below 0.8; start {wg.w2(start, fresh):.3f}, perfect {floor:.3f})"
)
