r"""
A density whose samples live on several processes
=================================================

.. math:: \log p_h(x) = \log \frac1M \sum_{r=1}^{R} \sum_{j \in \text{shard } r} k(x, y_j) + \text{const}

A sum over samples is a sum over shards: inside ``wg.distributed.sharded()`` every field and density is that of the
union of what the processes hold, with gradients. As a plain script this is a ring of one process; on two,

``torchrun --nproc-per-node 2 examples/sharded_density.py``
"""

import os

import torch
import torch.distributed as dist
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots

# %%
# A ring of processes
# -------------------
# ``torchrun`` says which one this is; alone, it is the only one.

alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
dist.init_process_group("gloo", **alone)  # "nccl" with tensors on GPUs
rank, size = dist.get_rank(), dist.get_world_size()

# %%
# Each holds its own samples
# --------------------------
# The density below is of all samples, read at those of this process.

samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
mine = samples.chunk(size)[rank].requires_grad_()  # what this process holds; sizes may differ
line = torch.linspace(-3.5, 3.5, 60)
with wg.distributed.sharded():
    density = wg.KDE(mine, wg.Gaussian(0.4))
    log_p = density.log_density(mine)
    height = density.log_density(torch.cartesian_prod(line, line)).detach()
log_p.sum().backward()  # gradients from every process, home with their samples

# %%
# The union, drawn by the first process
# -------------------------------------

total = log_p.detach().sum()
dist.all_reduce(total)
if rank == 0:
    plt.style.use(plots.STYLE)
    figure, (ax,) = plots.panels(
        f"{size} shard{'s' * (size > 1)}, one density", size=3.6, box=(-3.5, 3.5, -3.5, 3.5)
    )
    for colour, shard in zip(plots.COLOURS, samples.chunk(size), strict=False):
        plots.samples(ax, shard.detach(), colour=colour, size=3)
    ax.contour(line, line, height.exp().view(60, 60).mT, levels=7, colors="0.2", linewidths=0.8)
    figure.savefig("sharded_density.png", dpi=130)
    exact = -1 - torch.log(torch.tensor(2 * torch.pi))  # of samples without a kernel
    print(f"the Gaussian's own mean log density: {exact:.4f}")
    print(
        f"mean log density on {size} processes: {total / len(samples):.4f} (is -2.8473 on any number)"
    )
dist.destroy_process_group()
