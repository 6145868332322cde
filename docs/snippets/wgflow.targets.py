import torch
import wgflow as wg

Q = torch.randn(16)  # values of 16 candidates
print(wg.top_k_weights(Q, k=4))  # uniform on the best four
alpha, distance = wg.matched_temperature(Q, k=4)
print(alpha, distance)  # the soft improvement nearest to it, and how near
print(wg.boltzmann_weights(Q, alpha=alpha))
