r"""
Kernels and their shadows
=========================

A mean shift climbs a density, but whose? Not that of its own kernel k: that of the *shadow* H, the kernel whose
gradient kernel is k itself up to a constant (Cheng 1995),

.. math:: m_k(x) = \frac{\sum_j k(x, y_j)\,(y_j - x)}{\sum_j k(x, y_j)} = c\,\frac{f_H(x)}{f_k(x)}\,\nabla\log f_H(x),

with :math:`f` the sums over samples. The Gaussian alone is its own shadow; a kernel of wgflow knows which one it has.
"""

import torch
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots

# %%
# The law, for eleven kernels
# ---------------------------
# Both sides in the plane, in float64, at points near the samples: away from them a compact kernel has no mass at all.

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
# Where mean shifts come to rest
# ------------------------------
# On a line: points moved by the mean shift until they rest (dots) stand on the peaks of the shadow's density, not on
# those of the kernel's own. For the Laplace kernel every sample is a peak of its own density; its shadow is smooth.

samples = torch.tensor([-2.1, -1.8, -1.5, -1.4, -0.9, 0.6, 1.2, 1.5, 2.2], dtype=torch.float64)[
    :, None
]
line = torch.linspace(-4.2, 4.2, 1200, dtype=torch.float64)[:, None]
plt.style.use(plots.STYLE)
figure, axes = plt.subplots(2, 2, figsize=(8.4, 4.2), layout="constrained", sharex=True)
for ax, (name, k) in zip(
    axes.flat,
    {
        "Gaussian: its own shadow": wg.Gaussian(0.5),
        "Laplace: shadow Matérn-3/2": wg.Laplace(0.5),
        "Epanechnikov: shadow biweight": wg.epanechnikov(1.3),
        "flat: shadow Epanechnikov": wg.flat(1.3),
    }.items(),
    strict=True,
):
    own, shadow = (wg.KDE(samples, kernel).log_density(line).exp() for kernel in (k, k.shadow))
    rest = wg.flow(
        lambda at, k=k: wg.mean_shift(at, samples, kernel=k),
        line[::60],
        solver=wg.Euler(1.0),
        steps=200,
    ).end
    height = wg.KDE(samples, k.shadow).log_density(rest).exp()
    ax.fill_between(line[:, 0], own, color="0.88", linewidth=0, label="density of the kernel")
    ax.plot(line, shadow, color=plots.COLOURS[0], linewidth=1.4, label="density of its shadow")
    ax.plot(
        rest[height > 0],
        height[height > 0],
        "o",
        color=plots.COLOURS[1],
        markersize=4,
        label="points at rest",
    )
    ax.plot(samples, 0 * samples - 0.02, "|", color="0.3", markersize=6, label="samples")
    ax.set(title=name, yticks=[])
    ax.spines["left"].set_visible(False)
figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig("kernels_and_shadows.png", dpi=130)

for k, error in zip(KERNELS, errors, strict=True):
    print(f"{k!r:42} shadow {k.shadow!r:42} off by {error:.0e}")
print(
    f"largest error of the law over {len(KERNELS)} kernels: {max(errors):.1e} (below 1e-12: rounding)"
)
