import torch
import wgflow as wg

x, y = torch.randn(500, 2), torch.randn(500, 2) + 0.5
generator = torch.Generator().manual_seed(0)
print(wg.energy_distance(x, y), wg.sliced_w2(x, y, generator=generator), wg.w2(x, y))
print(wg.spread_ratio(x, y))  # about 1: spread like y; below .2: collapsed
