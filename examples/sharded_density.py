r"""
A density sharded over two processes
====================================

.. math:: \log p_h(x) = \log \frac1M \sum_{r=1}^{R} \sum_{j \in \text{shard } r} k(x, y_j) + \text{const}

A sum over samples is a sum over shards: inside ``wg.distributed.sharded()`` every field and density uses the union
of the samples that the processes hold, with gradients. Here two processes hold one half of a swiss roll each. This
script starts them itself; on a cluster ``torchrun`` does.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import wgflow as wg
from wgflow import plots
from wgflow.testing import toy

# %%
# The samples, and the shard of a process
# ---------------------------------------
# Process 0 holds the inner windings, process 1 the outer ones.

BOX, KERNEL = (-1.3, 1.3, -1.3, 1.3), wg.Gaussian(0.1)
samples = toy.SwissRoll(noise=0.05).sample(4000, generator=torch.Generator().manual_seed(0))
shards = samples[samples.norm(dim=-1).argsort()].split((2400, 1600))  # sizes may differ
line = torch.linspace(-1.3, 1.3, 50)
grid = torch.cartesian_prod(line, line)

# %%
# What each process does
# ----------------------
# It evaluates the density of *all* samples on the grid, and obtains the gradient of the sum of all log densities at
# its own samples.


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"  # torchrun needs no such argument
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mine = shards[rank].clone().requires_grad_()
    with wg.distributed.sharded():
        density = wg.KDE(mine, KERNEL)
        density.log_density(mine).sum().backward()
        height = density.log_density(grid).detach()
    np.savez(folder / f"{rank}.npz", height=height, gradient=mine.grad)
    dist.destroy_process_group()


if len(sys.argv) == 3:  # in a process started below
    work(int(sys.argv[1]), Path(sys.argv[2]))
    sys.exit()

# %%
# Two processes, one density
# --------------------------
# Alone, a process knows its own windings. With both, it knows the roll.

with tempfile.TemporaryDirectory() as name:
    command = [sys.executable, sys.argv[0]]
    processes = [subprocess.Popen([*command, str(rank), name]) for rank in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    found = [dict(np.load(Path(name) / f"{rank}.npz")) for rank in (0, 1)]
heights = [torch.from_numpy(one["height"]) for one in found]

titles = ("process 0 alone", "process 1 alone", "process 0, sharded")
figure, axes = plots.panels(*titles, box=BOX, size=3)
alone = [wg.KDE(shard, KERNEL).log_density(grid) for shard in shards]
for ax, height, held in zip(axes, (*alone, heights[0]), ((0,), (1,), (0, 1)), strict=True):
    for rank in held:
        plots.samples(ax, shards[rank], colour=plots.COLOURS[rank], size=2)
    ax.contour(line, line, height.exp().view(50, 50).mT, levels=6, colors="0.2", linewidths=0.8)
figure.savefig("sharded_density.png", dpi=130)

whole = torch.cat(shards).requires_grad_()
density = wg.KDE(whole, KERNEL)
density.log_density(whole).sum().backward()
gradient = torch.cat([torch.from_numpy(one["gradient"]) for one in found])
error = max((height - density.log_density(grid)).abs().max().item() for height in heights)
slope = ((gradient - whole.grad).norm() / whole.grad.norm()).item()
print(f"difference from one process: log density {error:.1e} (below 1e-3),", end=" ")
print(f"gradient, relative {slope:.1e} (below 1e-3)")
