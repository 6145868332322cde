import torch
from wgflow.testing import gaussians

p = torch.tensor([1.0, 0.0]), torch.eye(2)  # mean, covariance
q = torch.zeros(2), 2 * torch.eye(2)
print(gaussians.kl(q, p), gaussians.w2(p, q))
print(gaussians.drift(torch.zeros(1, 2), p, q, h=0.5))  # the field of whole populations
