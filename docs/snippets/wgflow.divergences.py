import torch
import wgflow as wg

log_r = torch.tensor([-1.0, 0.0, 1.0])  # log q/p
for divergence in (wg.ReverseKL(), wg.ForwardKL(), wg.JensenShannon()):
    print(divergence, divergence.weight(log_r))
x, data = torch.randn(300, 2), torch.randn(400, 2) + 1
V = wg.DriftingField(wg.Gaussian(0.5), wg.JensenShannon())(x, data)
