r"""
Use in an existing training loop
================================

``DriftingLoss`` is an ordinary module: a trainer that knows nothing of drifting calls ``training_step`` and
differentiates the loss it returns. Here one network learns three shapes by class label, with

.. math:: L = \mathrm{mean}_i \bigl|x_i - \mathrm{sg}(x_i + V(x_i))\bigr|^2,\qquad x_i = f_\theta(z_i, c).

Minibatch noise keeps L above zero even for a perfect generator, so the report has a second number: the *spread*
E|x - x'| / E|x - y|, near 1 for a matched cloud and near 0 for a collapsed one.
"""

import torch
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# The trainer stands for Lightning's, Accelerate's or your own.


def fit(module, loader, epochs):
    adam, log = module.configure_optimizers(), []
    for _ in range(epochs):
        for batch in loader:
            metrics = module.training_step(batch)
            adam.zero_grad()
            metrics["loss"].backward()
            adam.step()
            log.append({name: value.item() for name, value in metrics.items()})
    return log


# %%
# The module holds a generator, a queue and a loss. Batches mix the labels, while the field needs many positives of
# each: ``SampleQueue`` keeps the latest samples of every class.

field = sum(wg.DriftingField(wg.Gaussian(h), skip_self=True) / h for h in (0.4, 0.12))


class Generator(torch.nn.Module):
    def __init__(self, classes=3, group=128):
        super().__init__()
        self.group = group
        self.register_buffer("classes", torch.arange(classes))  # moves with the module
        lin, silu, width = torch.nn.Linear, torch.nn.SiLU(), 4 + classes
        self.net = torch.nn.Sequential(lin(width, 128), silu, lin(128, 128), silu, lin(128, 2))
        self.queue = wg.SampleQueue(2, size=1000, classes=classes)
        self.drifting = wg.DriftingLoss(field)
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, labels):
        z = torch.randn(*labels.shape, 4, generator=self.noise).to(
            labels.device
        )  # drawn on the CPU
        return self.net(torch.cat([z, one_hot(labels, len(self.classes)).to(z)], -1))

    def training_step(self, batch):
        self.queue.push(*batch)
        x = self(self.classes[:, None].expand(-1, self.group))
        report = self.drifting(x, self.queue.draw(self.group, self.classes, generator=self.noise))
        return report._asdict()  # loss, displacement, spread

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


# %%
# Fit and plot.
generator = torch.Generator().manual_seed(0)
shapes = [toy.Rings(radii=(0.9,), noise=0.05), toy.TwoMoons(), toy.Pinwheel()]
points = torch.cat([shape.sample(2000, generator=generator) for shape in shapes])
data = TensorDataset(points, torch.arange(3).repeat_interleave(2000))
torch.manual_seed(0)  # of the network's weights
module = Generator()
first = torch.randperm(len(data), generator=generator)[:1500]
module.queue.push(*data[first])  # draws are without replacement, so every class needs 128
log = fit(module, DataLoader(data, batch_size=200, shuffle=True, generator=generator), epochs=20)

x = module(torch.arange(3)[:, None].expand(-1, 1000)).detach()
fresh = torch.stack([shape.sample(1000, generator=generator) for shape in shapes])
distances = wg.energy_distance(x, fresh)
figure, axes = plots.panels("class 0", "class 1", "class 2", "spread", box=(-1.8, 1.8, -1.8, 1.8))
for ax, drawn, true, distance in zip(axes, x, fresh, distances, strict=False):
    plots.samples(plots.samples(ax, true, colour=plots.COLOURS[2], size=3), drawn, size=4)
    ax.set_xlabel(f"energy distance {distance:.3f}")
axes[3].plot([row["spread"] for row in log], color=plots.COLOURS[0], linewidth=0.8)
limits = {"xlim": (0, len(log)), "ylim": (0, 1.3), "yticks": (0, 1)}
axes[3].set(aspect="auto", **limits, xlabel=f"step, 0 to {len(log)}")
figure.savefig("training_loop.png", dpi=130)
first, last = log[0]["spread"], log[-1]["spread"]
print(f"spread {first:.2f} at the first step, {last:.2f} at the last (near 1)")
print(f"largest energy distance to fresh data {distances.max():.4f} (below 0.02)")
