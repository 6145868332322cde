r"""
Kernels and their shadows
=========================

A mean shift with kernel k climbs a density, but not the KDE of k: it climbs the KDE of the *shadow* H of k, the kernel
whose gradient kernel is k up to a constant (Cheng 1995),

.. math:: m_k(x) = \frac{\sum_j k(x, y_j)\,(y_j - x)}{\sum_j k(x, y_j)} = c\,\frac{f_H(x)}{f_k(x)}\,\nabla\log f_H(x),

with :math:`f` the sums over samples. Only the Gaussian is its own shadow; most kernels of wgflow have one, ``shadow``.
"""

import torch
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots

# %%
# The identity for eleven kernels
# -------------------------------
# Both sides in the plane, in float64, at points near the samples: farther away a compact kernel has no mass.

KERNELS = (
    wg.Gaussian(0.5), wg.Laplace(0.5), wg.Matern(0.5, 1.5), wg.Matern(0.5, 2.5), wg.Matern(0.5, 3.5),
    wg.RationalQuadratic(0.5, 2.0), wg.RationalQuadratic(0.5, 1.5), wg.student_t(0.5, nu=3, dim=2),
    wg.flat(0.5), wg.epanechnikov(0.5), wg.biweight(0.5),
)  # fmt: skip
generator = torch.Generator().manual_seed(0)
y = torch.randn(200, 2, generator=generator, dtype=torch.float64)
x = y + 0.1 * torch.randn(200, 2, generator=generator, dtype=torch.float64)

errors = []
for k in KERNELS:
    log_f, _ = wg.kernel_average(x, y, kernel=k)
    log_f_shadow, _ = wg.kernel_average(x, y, kernel=k.shadow)
    climb = (log_f_shadow - log_f).exp()[:, None] * wg.KDE(y, k.shadow).score(x)
    errors.append((wg.mean_shift(x, y, kernel=k) - k.shadow_scale * climb).abs().max().item())

# %%
# Fixed points of the mean shift
# ------------------------------
# On the line, repeated mean shifts end (dots) at the modes of the shadow's density, not at those of the kernel's own.
# The Laplace density has a mode at every sample; the density of its shadow is smooth.

places = [-2.1, -1.8, -1.5, -1.4, -0.9, 0.6, 1.2, 1.5, 2.2]
samples = torch.tensor(places, dtype=torch.float64)[:, None]
line = torch.linspace(-4.2, 4.2, 1200, dtype=torch.float64)[:, None]
plt.style.use(plots.STYLE)
figure, axes = plt.subplots(2, 2, figsize=(8.4, 4.2), layout="constrained", sharex=True)
shown = {
    "Gaussian: its own shadow": wg.Gaussian(0.5),
    "Laplace: shadow Matérn-3/2": wg.Laplace(0.5),
    "Epanechnikov: shadow biweight": wg.epanechnikov(1.3),
    "flat: shadow Epanechnikov": wg.flat(1.3),
}
dots = {"color": plots.COLOURS[1], "markersize": 4}
for ax, (name, k) in zip(axes.flat, shown.items(), strict=True):
    own, shadow = (wg.KDE(samples, kernel).log_density(line).exp() for kernel in (k, k.shadow))
    shift = lambda at, k=k: wg.mean_shift(at, samples, kernel=k)
    rest = wg.flow(shift, line[::60], solver=wg.Euler(1.0), steps=200).end
    height = wg.KDE(samples, k.shadow).log_density(rest).exp()
    ax.fill_between(line[:, 0], own, color="0.88", linewidth=0, label="density of the kernel")
    ax.plot(line, shadow, color=plots.COLOURS[0], linewidth=1.4, label="density of its shadow")
    ax.plot(rest[height > 0], height[height > 0], "o", **dots, label="fixed points")
    ax.plot(samples, 0 * samples - 0.02, "|", color="0.3", markersize=6, label="samples")
    ax.set(title=name, yticks=[])
    ax.spines["left"].set_visible(False)
figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig("kernels_and_shadows.png", dpi=130)

for k, error in zip(KERNELS, errors, strict=True):
    print(f"{k!r:42} shadow {k.shadow!r:42} error {error:.0e}")
print(f"largest error over {len(KERNELS)} kernels: {max(errors):.1e} (below 1e-12: rounding)")
