import torch
import wgflow as wg

x, y = torch.randn(1000, 2), torch.randn(2000, 2)
log_mass, barycentre = wg.kernel_average(x, y, kernel=wg.Gaussian(0.5))
print(log_mass.shape, barycentre.shape)
print(wg.explain_backend(x, y, kernel=wg.Gaussian(0.5)))
