import torch
from wgflow.testing import toy

target = toy.SwissRoll(noise=0.03)
print(target.sample(500, generator=torch.Generator().manual_seed(0)).shape)
