import torch
import wgflow as wg
from wgflow import bounds

candidates, Q = torch.rand(64, 2) - 0.5, torch.randn(64)
kernel = wg.Gaussian(1.0)
best, tilt = wg.top_k_weights(Q, k=8), wg.boltzmann_weights(Q, alpha=0.5)
print(bounds.loss_constant(kernel, 2**0.5) * wg.total_variation(best, tilt))
