# torchrun --nproc-per-node 2 FILE
import torch
import torch.distributed as dist
import wgflow as wg

dist.init_process_group("gloo")
x, data = torch.randn(500, 2), torch.randn(500, 2) + 1  # the shards of this process
with wg.distributed.sharded():
    V = wg.drifting_field(x, data, x, kernel=wg.Gaussian(0.5))  # sums over all shards
print(dist.get_rank(), V.shape)
dist.destroy_process_group()
