import torch
import wgflow as wg

x, data = torch.randn(200, 2), torch.randn(300, 2) + 1
F = wg.MMD(data, wg.Gaussian(0.7))
path = wg.flow(F, x, solver=wg.Euler(0.5), steps=100)
print(F.value(x), F.value(path.end))  # it falls
