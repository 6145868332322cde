"""A density of samples that live on several processes: torchrun --nproc-per-node 2 examples/sharded_density.py"""

import torch
import torch.distributed as dist

import wgflow as wg

dist.init_process_group("gloo")  # "nccl" with tensors on GPUs; alone it is a ring of one
rank, size = dist.get_rank(), dist.get_world_size()
samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
mine = samples.chunk(size)[rank].requires_grad_()  # what this process holds; sizes may differ

with wg.distributed.sharded():
    log_p = wg.KDE(mine, wg.Gaussian(0.4)).log_density(mine)  # of all samples, at this process's
log_p.sum().backward()  # gradients from every process, home with their samples

total = log_p.detach().sum()
dist.all_reduce(total)
if rank == 0:
    exact = -1 - torch.log(torch.tensor(2 * torch.pi))  # of samples without a kernel
    print(
        f"mean log density on {size} processes: {total / len(samples):.4f}; the Gaussian's own: {exact:.4f}"
    )
dist.destroy_process_group()
