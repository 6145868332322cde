import torch
import wgflow as wg

y = torch.randn(500, 3)
print(wg.scott(y), wg.median_heuristic(y), wg.leave_one_out(y))  # one length
print(wg.per_dimension(y))  # a kernel with one length per coordinate
print(wg.full_matrix(y))  # a kernel with a matrix of squared lengths, by its Cholesky factor
