import torch
import wgflow as wg

x, data = torch.randn(200, 2), torch.randn(300, 2) + 1
path = wg.flow(lambda x: wg.energy_field(x, data), x, steps=50, snapshots=5)
print(path.points.shape, path.times)  # the kept clouds, and when
