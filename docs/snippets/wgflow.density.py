import torch
import wgflow as wg

density = wg.KDE(torch.randn(1000, 2), wg.Gaussian(0.3))
x = torch.zeros(1, 2)
print(density.log_density(x), density.score(x), density.hessian(x))
print(density.sample(5, generator=torch.Generator().manual_seed(0)).shape)
