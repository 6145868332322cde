r"""Scores of generated samples in a space of features, as used for images: Fréchet distance, fidelity and diversity.

Features must come from an encoder that had no part in the training: a generator trained in the features that judge it
wins by construction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.distances import sq_distances
from wgflow.reductions import check_clouds, check_no_nan, require_unsharded
from wgflow.testing import gaussians

__all__ = ["SupportOverlap", "frechet_distance", "support_overlap"]


@checked
def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""The squared W2 distance of the Gaussians with the means and covariances of two clouds (Heusel et al. 2017).

    |m_x - m_y|² + tr(A + B - 2 (A^½ B A^½)^½), in float64. Biased upwards by O(1/N): compare equal N only.

    Args:
        x: [N, D], N >= 2.
        y: [M, D], M >= 2.

    Returns:
        A scalar, a squared length, without gradient.

    Raises:
        ValueError: on clouds that do not match or come in batches, on fewer than two points, on NaN.
    """
    a, b = _clouds(x, y, 2)
    fits = [(t.mean(0), torch.cov(t.mT).reshape(t.shape[-1], -1)) for t in (a, b)]
    return gaussians.w2(*fits).square().to(x.dtype)


class SupportOverlap(NamedTuple):
    """Fractions of samples within the k-nearest-neighbour balls of the other set; see `support_overlap`."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


@checked
def support_overlap(x: Tensor, y: Tensor, *, k: int = 5) -> SupportOverlap:
    r"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of generated samples.

    The ball of a point reaches to its k-th nearest neighbour in its own set. Precision is the fraction of x inside some
    ball of y, recall that of y inside some ball of x, density the mean number of balls of y around a point of x over k,
    coverage the fraction of balls of y that hold a point of x. For equal laws and equal N, coverage is about
    1 - 2^-k and density 1.

    Args:
        x: [N, D] generated, N > k.
        y: [M, D] real, M > k.
        k: which neighbour.

    Returns:
        Scalars, of the dtype of x, without gradient. Computed in blocks of rows.

    Raises:
        ValueError: on clouds that do not match or come in batches, on k points or fewer, on NaN.
    """
    if k < 1:
        raise ValueError(f"k = {k}; wanted at least 1.")
    a, b = _clouds(x, y, k + 1)
    reach_x, reach_y = _reach(a, k), _reach(b, k)
    balls, covered = [], torch.zeros(len(b), dtype=torch.bool, device=b.device)
    in_x = torch.zeros(len(b), dtype=torch.bool, device=b.device)
    for rows, reach in zip(a.split(_rows(b)), reach_x.split(_rows(b)), strict=True):
        sq = sq_distances(rows, b)
        inside = sq <= reach_y
        balls.append(inside.sum(-1))
        covered |= inside.any(0)
        in_x |= (sq <= reach[:, None]).any(0)
    count = torch.cat(balls).double()
    scores = (count > 0).double().mean(), in_x.double().mean(), count.mean() / k
    return SupportOverlap(*(t.to(x.dtype) for t in (*scores, covered.double().mean())))


def _clouds(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both clouds in float64, detached. Raises: ValueError."""
    require_unsharded("a metric")
    check_clouds(x, y, None, False, ("x", "y"))
    for name, t in (("x", x), ("y", y)):
        check_no_nan(t - t, name)
        if t.dim() != 2 or len(t) < least:
            raise ValueError(
                f"{name} is {list(t.shape)}; wanted one cloud [n, D] of at least {least} points."
            )
    return x.detach().double(), y.detach().double()


def _rows(y: Tensor) -> int:
    return max(1, (1 << 22) // len(y))


def _reach(x: Tensor, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest neighbour."""
    parts = [sq_distances(rows, x).kthvalue(k + 1, -1).values for rows in x.split(_rows(x))]
    return torch.cat(parts)  # the nearest is the point itself
