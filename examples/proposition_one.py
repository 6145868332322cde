r"""
Proposition 1 in pictures
=========================

Drifting Field Policy replaces the soft improvement :math:`\pi^+ \propto \pi\, e^{Q/\alpha}` by the K best of N
candidates. Proposition 1 bounds the change of the drifting loss :math:`L_p = \mathbb E\,|V_p|^2` by the total variation
between the two targets; on N candidates every term is a finite sum. A sharper and a *localised* bound hold too, with
:math:`\kappa = k_{\max} / k_{\min}` and :math:`p_x \propto k(x, \cdot)\, p`, the target weighted by the kernel at x:

.. math:: |L_p - L_{p'}| \;\le\; 2\,\mathrm{diam}^2\,\mathbb E_x \mathrm{TV}(p_x, p'_x)
          \;\le\; 2\kappa\,\mathrm{diam}^2\,\mathrm{TV}(p, p').
"""

import torch
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import bounds, plots

# %%
# Candidates with values
# ----------------------
# Q has a high peak on the right and a lower one on the left.

generator = torch.Generator().manual_seed(0)
candidates = 0.55 * torch.randn(64, 2, generator=generator, dtype=torch.float64)
hill = lambda a, x, y: (-(a - torch.tensor([x, y])).square().sum(-1) / 0.3).exp()
Q = lambda a: hill(a, 0.6, 0.3) + 0.7 * hill(a, -0.6, -0.2)
K, kernel = 16, wg.Gaussian(0.7)
values = Q(candidates)
best = wg.top_k_weights(values, k=K)

# %%
# The temperature that matches the top K
# --------------------------------------

alphas = torch.logspace(-2.5, 1, 60, dtype=torch.float64)
tilts = [wg.boltzmann_weights(values, alpha=a.item()) for a in alphas]
variation = torch.stack([wg.total_variation(best, tilt) for tilt in tilts])
matched, least = wg.matched_temperature(values, k=K)

# %%
# The change of the loss, and three bounds on it
# ----------------------------------------------

diam = bounds.diameter(candidates)
loss = lambda w: bounds.drift_loss(candidates, candidates, w, candidates, kernel=kernel)
change = torch.stack([(loss(best) - loss(tilt)).abs() for tilt in tilts])
local = lambda w: bounds.localised_bound(candidates, candidates, best, w, candidates, kernel=kernel)
localised = torch.stack([local(tilt) for tilt in tilts])
sharp = bounds.loss_constant(kernel, diam) * variation
published = bounds.published_loss_constant(kernel, diam) * variation

# %%
# The picture
# -----------

plt.style.use(plots.STYLE)
BOX = (-1.7, 1.7, -1.7, 1.7)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.5), layout="constrained")
plots.density(left, lambda a: Q(a.double()).log(), box=BOX)
sizes = 600 * wg.boltzmann_weights(values, alpha=matched.item())
soft = {"color": plots.COLOURS[0], "linewidths": 0, "label": "soft, matched α: area"}
ring = {"color": "none", "edgecolors": plots.COLOURS[1], "label": f"the best {K}"}
left.scatter(*candidates.T, s=sizes, **soft)
left.scatter(*candidates[best > 0].T, s=44, **ring)
left.set(aspect="equal", xlim=BOX[:2], ylim=BOX[2:], xticks=[], yticks=[])
left.set_title("64 candidates over Q")
left.legend(loc="upper left")
middle.semilogx(alphas, variation, color=plots.COLOURS[0])
middle.plot(matched, least, "o", color=plots.COLOURS[1])
middle.text(matched, least - 0.13, f"matched α = {matched:.3f}\nTV = {least:.2f}", ha="center")
middle.set(xlabel="temperature α", ylabel="TV(top-K, soft)", ylim=(0, 1))
middle.set_title("One temperature is nearest")
for label, bound, colour in (
    ("published form, κ²", published, "0.7"),
    ("sharp constant, κ", sharp, plots.COLOURS[2]),
    ("localised", localised, plots.COLOURS[0]),
    ("the change", change, plots.COLOURS[1]),
):
    right.loglog(alphas, bound, color=colour)
    right.annotate(label, (alphas[0], bound[0]), (0, 4), textcoords="offset points", color=colour)
right.set(xlabel="temperature α", ylabel="change of the loss", title="Three bounds on the change")
figure.savefig("proposition_one.png", dpi=130)

print(f"matched temperature {matched:.3f}: TV {least:.3f}, the least over all temperatures")
print(f"largest change / sharp bound: {(change / sharp).max():.1e}, and")
print(f"largest change / localised bound: {(change / localised).max():.3f} (at most 1)")
