import torch
import wgflow as wg
from wgflow import plots

data = torch.randn(400, 2)
x = torch.randn(200, 2) + 1
ax = plots.axes()
plots.samples(ax, data, colour=plots.COLOURS[2])
plots.samples(ax, x)
plots.field(ax, lambda at: wg.energy_field(at, data), box=(-4, 4, -4, 4), grid=12)
ax.figure.savefig("field.png")
