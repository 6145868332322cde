import torch
import wgflow as wg

k = wg.Matern(0.5, nu=1.5)
print(k.shadow, k.gradient_kernel)  # the kernel whose density its mean shift climbs; ∇k = s (y - x)
print(wg.Gaussian(torch.tensor([0.5, 2.0])))  # one length per dimension
