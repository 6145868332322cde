r"""
The drifting field is a difference of scores
============================================

With a Gaussian kernel of bandwidth h, the drifting field *is* a score difference, exactly and on any finite samples:

.. math:: V_{p,q}(x) = h^2\,\bigl(\nabla\log p_h(x) - \nabla\log q_h(x)\bigr) = h^2\,\nabla\log\frac{p_h(x)}{q_h(x)},

with :math:`p_h`, :math:`q_h` the kernel density estimates of the two clouds. No other kernel has this property.
"""

import torch
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# Two clouds, two densities
# -------------------------

generator = torch.Generator().manual_seed(0)
data = toy.Pinwheel().sample(400, generator=generator).double()
noise = 0.9 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
h = 0.25
p, q = wg.KDE(data, wg.Gaussian(h)), wg.KDE(noise, wg.Gaussian(h))

# %%
# Both sides of the identity
# --------------------------
# The left side is two mean shifts; the right side differentiates the log densities by autograd.

x = (4 * torch.rand(500, 2, generator=generator, dtype=torch.float64) - 2).requires_grad_()
log_ratio = p.log_density(x) - q.log_density(x)
(gradient,) = torch.autograd.grad(log_ratio.sum(), x)
V = wg.drifting_field(x.detach(), data, noise, kernel=wg.Gaussian(h))
error = (V - h**2 * gradient).abs().max().item()

# %%
# The same with the Laplace kernel
# --------------------------------
# There the field climbs the density of another kernel, the *shadow* (``kernels_and_shadows.py``): no factor in place of
# h² gives equality.

laplace = wg.Laplace(h)
V_laplace = wg.drifting_field(x.detach(), data, noise, kernel=laplace)
gap = wg.KDE(data, laplace).score(x.detach()) - wg.KDE(noise, laplace).score(x.detach())
factor = (V_laplace * gap).sum() / gap.square().sum()
wrong = (V_laplace - factor * gap).abs().max().item()

# %%
# The field climbs the log ratio
# ------------------------------

plt.style.use(plots.STYLE)
figure, (ax, right) = plt.subplots(
    1, 2, figsize=(8.2, 3.7), layout="constrained", width_ratios=(1.15, 1)
)
box, line = (-2.2, 2.2, -2.2, 2.2), torch.linspace(-2.2, 2.2, 160, dtype=torch.float64)
grid = torch.cartesian_prod(line, line)
height = (p.log_density(grid) - q.log_density(grid)).view(160, 160).mT.clamp(-3, 3)
hills = ax.contourf(line, line, height, levels=torch.linspace(-3, 3, 25), cmap="RdBu", zorder=0)
figure.colorbar(hills, ax=ax, ticks=(-3, 0, 3), shrink=0.7, label="log p$_h$ / q$_h$")
field = lambda at: wg.drifting_field(at.double(), data, noise, kernel=wg.Gaussian(h))
plots.streamlines(ax, field, box=box, colour="0.15", density=1.1)
plots.samples(ax, data, colour="k", size=2)
ax.set(aspect="equal", xticks=[], yticks=[], title="The field and the log ratio it climbs")

for V_k, scores, label, colour in (
    (V_laplace, factor * gap, "Laplace, best factor", plots.COLOURS[1]),
    (V, h**2 * gradient, "Gaussian, factor h²", plots.COLOURS[0]),
):
    right.scatter(scores.flatten(), V_k.flatten(), s=5, color=colour, linewidths=0, label=label)
right.set(
    aspect="equal", xlabel="factor × score difference", ylabel="field", title="Point by point"
)
right.legend(loc="upper left")
figure.savefig("score_identity.png", dpi=130)

print(f"Laplace kernel: error {wrong:.2f} with the best factor")
print(f"Gaussian kernel: largest |V - h² ∇ log p/q| = {error:.1e} (below 1e-12: rounding)")
