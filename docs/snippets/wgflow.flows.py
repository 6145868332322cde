import torch
import wgflow as wg

x, data = torch.randn(200, 2), torch.randn(300, 2) + 1
path = wg.flow(lambda x: wg.energy_field(x, data), x, solver=wg.Heun(0.1), steps=50)
print(path, wg.energy_distance(path.end, data))
