r"""
A density sharded over several processes
========================================

.. math:: \log p_h(x) = \log \frac1M \sum_{r=1}^{R} \sum_{j \in \text{shard } r} k(x, y_j) + \text{const}

A sum over samples is a sum over shards: inside ``wg.distributed.sharded()`` every field and density uses the union
of the samples that the processes hold, with gradients. As a plain script it runs on one process; on four,

``torchrun --nproc-per-node 4 examples/sharded_density.py``

draws the same density from four shards, and prints the same number.
"""

import os

import torch
import torch.distributed as dist
from matplotlib import pyplot as plt

import wgflow as wg
from wgflow import plots

# %%
# The process group
# -----------------
# ``torchrun`` sets RANK; without it this process is the only one.

alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
dist.init_process_group("gloo", **alone)  # "nccl" with tensors on GPUs
rank, size = dist.get_rank(), dist.get_world_size()

# %%
# One shard per process
# ---------------------
# The density is that of all samples, evaluated at the samples of this process.

samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
mine = samples.chunk(size)[rank].requires_grad_()  # the shard of this process; sizes may differ
line = torch.linspace(-3.5, 3.5, 60)
with wg.distributed.sharded():
    density = wg.KDE(mine, wg.Gaussian(0.4))
    log_p = density.log_density(mine)
    height = density.log_density(torch.cartesian_prod(line, line)).detach()
log_p.sum().backward()  # every process obtains the gradient of its own samples

# %%
# Comparison with the density of all samples on one process
# ---------------------------------------------------------

total = log_p.detach().sum()
dist.all_reduce(total)
whole = wg.KDE(samples, wg.Gaussian(0.4)).log_density(mine.detach())
difference = (log_p.detach() - whole).abs().max()
dist.all_reduce(difference, dist.ReduceOp.MAX)
if rank == 0:
    plt.style.use(plots.STYLE)
    title = f"{size} shard{'s' * (size > 1)}, one density"
    figure, (ax,) = plots.panels(title, size=3.6, box=(-3.5, 3.5, -3.5, 3.5))
    for colour, shard in zip(plots.COLOURS, samples.chunk(size), strict=False):
        plots.samples(ax, shard.detach(), colour=colour, size=3)
    ax.contour(line, line, height.exp().view(60, 60).mT, levels=7, colors="0.2", linewidths=0.8)
    figure.savefig("sharded_density.png", dpi=130)
    mean = f"{total / len(samples):.4f}"
    print(f"{size} shard{'s' * (size > 1)}: mean log density {mean} (is -2.8473), ", end="")
    print(f"difference from one process {difference:.1e} (below 1e-4)")
dist.destroy_process_group()
