"""One process of two that share a batch, started by tests/test_losses.py.

python -m tests.ddp_worker STORE OUT RANK
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import wgflow as wg

FIELDS = {"published": wg.PublishedField(), "energy": wg.EnergyField(0.5).standardized()}


def results(rank: int, size: int, group) -> dict:
    """For every field: the gradients of a generator from this process's share, displacement and spread."""
    g = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    z, pos, neg = randn(3, 6, 4), randn(3, 4, 2, 3, 3), randn(8, 2, 3, 3)
    weight = randn(18, 4)
    z, pos, neg = (t.tensor_split(size, axis)[rank] for t, axis in ((z, 1), (pos, 1), (neg, 0)))
    found = {}
    for name, field in FIELDS.items():
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 18, dtype=torch.float64), torch.nn.Unflatten(-1, (2, 3, 3))
        )
        net[0].load_state_dict({"weight": weight, "bias": weight[:, 0]})
        model = net if group is None else DistributedDataParallel(net, process_group=group)
        maps = lambda t: [t.flatten(1), t.flatten(2).mT]  # vectors, and a map with 9 locations
        loss = wg.DriftingLoss(field, features=[maps], group=group)
        guided = (neg, torch.tensor([1.0, 2.0, 4.0])) if name == "published" else ()
        report = loss(model(z), pos, *guided)
        report.loss.backward()
        found[name] = [p.grad for p in net.parameters()], [report.displacement, report.spread]
    return found


if __name__ == "__main__":
    store, out, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    torch.save(results(rank, 2, dist.group.WORLD), out / f"{rank}.pt")
    dist.destroy_process_group()
