"""Noise drifts onto eight Gaussians: V pulls to the data, pushes particles apart, and is zero when both match.

    python examples/first_drift.py [picture.png]

Prints the energy distance to fresh data before and after, beside that of a perfect sampler; draws the flow.
"""

import sys

import torch

import wgflow as wg
from wgflow import plots, toy

generator = torch.Generator().manual_seed(0)
target = toy.eight_gaussians(radius=1.0, std=0.1)
data = target.sample(300, generator=generator)
noise = 0.3 * torch.randn(300, 2, generator=generator)

# One wide, one narrow: at h = 0.15 alone no particle in the middle would feel which mode is missing particles.
kernel_wide, kernel = wg.Gaussian(0.4), wg.Gaussian(0.15)


def velocity(x):
    """Eq. 3 at two bandwidths, each divided by h^2: differences of KDE scores, in one unit."""
    return sum(wg.drifting_field(x, data, x, kernel=k) / k.h**2 for k in (kernel_wide, kernel))


path = wg.flow(velocity, noise, dt=0.015, steps=120, keep=60)

fresh = target.sample(300, generator=generator)
before, after = (wg.energy_distance(x, fresh).item() for x in (noise, path.end))
floor = wg.energy_distance(target.sample(300, generator=generator), fresh).item()
shares = wg.mode_proportions(path.end, target.means)
print(
    f"energy distance to fresh data: {before:.4f} before, {after:.4f} after, {floor:.4f} for a perfect sampler"
)
print(f"share of particles at each mode: {', '.join(f'{s:.3f}' for s in shares)} (truth 0.125)")

ax = plots.axes(6.2, 5)
plots.field(ax, lambda x: wg.drifting_field(x, data, noise, kernel=kernel_wide), box=(-1.5, 1.5, -1.5, 1.5))
plots.trajectories(ax, path, count=150)
plots.samples(ax, data, label="data", colour=plots.COLOURS[2])
plots.samples(ax, path.end, label="particles", colour=plots.COLOURS[1], size=4)
ax.legend(loc="upper right", fontsize=8)
ax.set_title("Drift of 300 particles; arrows: the field at the start", fontsize=10)
picture = sys.argv[1] if len(sys.argv) > 1 else "first_drift.png"
ax.figure.savefig(picture, dpi=130)
print(f"wrote {picture}")
