import torch
import wgflow as wg

x, y = torch.randn(500, 8), torch.randn(500, 8)  # features of generated and of real images
print(wg.frechet_distance(x, y))
print(wg.support_overlap(x, y, k=5))  # precision, recall, density, coverage
