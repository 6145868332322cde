import torch
import wgflow as wg

x, data = torch.randn(300, 2), torch.randn(400, 2) + 3
field = wg.DriftingField(wg.Gaussian(0.5))
V = field(x, data)  # [300, 2], one velocity per point
mixed = (field.normalized() + wg.EnergyField().normalized()) / 2  # a field again
print(mixed, mixed(x, data).shape)
