r"""
Seven f-divergences
===================

The Wasserstein gradient flow of any f-divergence :math:`D_f(q\,\Vert\,p) = \int p\, f(q/p)` is the plain field times a
weight that depends only on the density ratio :math:`r = q/p`:

.. math:: v = -\nabla f'(r) = \underbrace{r f''(r)}_{\text{weight}}\,(\nabla\log p - \nabla\log q).

The two kernel sums of the field also give r, so the weight costs nothing more. It decides *which particles move first*.
"""

import torch

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

DIVERGENCES = {
    "reverse KL": wg.ReverseKL(), "Jensen-Shannon": wg.JensenShannon(), "skew KL": wg.SkewKL(),
    "forward KL": wg.ForwardKL(), "chi-square": wg.ChiSquare(), "Hellinger": wg.Hellinger(),
    "alpha = 3/2": wg.Alpha(1.5),
}  # fmt: skip

# %%
# The weight is r f''(r)
# ----------------------
# Differentiate each f twice by autograd, and compare.

r = torch.logspace(-2, 2, 200, dtype=torch.float64).requires_grad_()
errors = []
for divergence in DIVERGENCES.values():
    (first,) = torch.autograd.grad(divergence.f(r.log()).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    weight = divergence.weight(r.detach().log())
    errors.append(((r.detach() * second - weight) / weight).abs().max().item())

# %%
# One target, one start, seven flows
# ----------------------------------
# Particles start off centre; three modes hold 0.6, 0.3 and 0.1 of the data. Each flow has rms speed 1 and the same
# duration, so every cloud has moved equally far; what differs is which particles have moved.

generator = torch.Generator().manual_seed(0)
target = toy.unbalanced_mixture(std=0.15)
data = target.sample(500, generator=generator)
start = 0.35 * torch.randn(500, 2, generator=generator) + torch.tensor([0.2, -0.3])
kernel = wg.Gaussian(0.3)


def flow_at_unit_speed(divergence):
    field = wg.DriftingField(kernel, divergence).normalized() / 2**0.5  # vectors of rms length 1
    return wg.flow(lambda x: field(x, data), start, solver=wg.Euler(0.0125), steps=40)


paths = {name: flow_at_unit_speed(divergence) for name, divergence in DIVERGENCES.items()}

# %%
# Which particles moved first
# ---------------------------
# Dark particles have moved far, pale ones little; the inset shows the weight against log r. Reverse KL weights all
# particles equally. Forward KL and Hellinger weight sparse regions, so the front leaves first; chi-square and
# alpha = 3/2 weight the densest ones; Jensen-Shannon and skew KL have bounded weights, small where there is no data.

figure, axes = plots.panels("start", *DIVERGENCES, columns=4, box=(-1.3, 1.5, -1.4, 1.4))
for ax in axes:
    plots.samples(ax, data, colour=plots.COLOURS[2], size=5)
plots.samples(axes[0], start, size=7)
for ax, (name, path) in zip(axes[1:], paths.items(), strict=True):
    plots.trajectories(ax, path, count=150, colour="0.6")
    far = (path.end - start).norm(dim=-1)
    ax.scatter(*path.end.T, c=far, cmap="Blues", vmin=-0.3, vmax=0.9, s=8, linewidths=0, zorder=3)
    corner = ax.inset_axes(
        (0.72, 0.02, 0.26, 0.26), xticks=[], yticks=[], xlim=(-4, 4), ylim=(-0.1, 3)
    )
    log_r = torch.linspace(-4, 4, 100)
    corner.plot(log_r, DIVERGENCES[name].weight(log_r), color=plots.COLOURS[1], linewidth=1.2)
    corner.axvline(0, color="0.8", linewidth=0.6, zorder=0)
figure.savefig("divergences.png", dpi=130)

fresh = target.sample(500, generator=generator)
for name, path in paths.items():
    print(f"{name:15} energy distance {wg.energy_distance(path.end, fresh):.3f} so far")
print(f"largest relative error of weight = r f''(r): {max(errors):.1e} (below 1e-10: rounding)")
