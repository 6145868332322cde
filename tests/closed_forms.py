"""Gaussians with closed forms to compare with, and samples from them."""

import torch
from torch import Tensor


def random_gaussian(dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(mean, covariance) in float64, well conditioned."""
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return mean, root @ root.mT / dim + 0.3 * torch.eye(dim, dtype=torch.float64)


def draw(gaussian: tuple[Tensor, Tensor], n: int, generator: torch.Generator) -> Tensor:
    """[n, D] independent draws."""
    mean, cov = gaussian
    noise = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    return mean + noise @ torch.linalg.cholesky(cov).mT


def quantiles(gaussian: tuple[Tensor, Tensor], n: int) -> Tensor:
    """[n, 1] equally weighted points on the quantiles of a 1-D Gaussian: an accurate cloud without randomness."""
    (mean, cov) = gaussian
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return mean + cov.squeeze().sqrt() * torch.special.ndtri(levels).unsqueeze(-1)
