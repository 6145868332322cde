r"""Target distributions over N candidates with values: weights [..., N], each row summing to 1.

A field takes them as `pos_weights`. `boltzmann_weights` tilts by exp(Q / alpha), `top_k_weights` keeps the best K, and
`matched_temperature` is the alpha whose tilt is closest to a top-K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.arguments import checkable, checked

__all__ = [
    "boltzmann_weights",
    "effective_sample_size",
    "importance_weights",
    "level_set_weights",
    "matched_temperature",
    "top_k_weights",
    "total_variation",
]


@checked
def boltzmann_weights(values: Tensor, *, alpha: float | Tensor) -> Tensor:
    r"""softmax(Q / alpha): candidates drawn from a policy, reweighted to the policy tilted by exp(Q / alpha).

    Args:
        values: [..., N], Q.
        alpha: temperature > 0 in the units of Q, a number or [...].

    Returns:
        [..., N], differentiable in Q.

    Raises:
        ValueError: on an alpha that is not positive, no candidates, NaN values.
    """
    _check(values)
    positive = alpha > 0
    if isinstance(positive, Tensor):
        positive = not checkable(positive) or bool(positive.all())
    if not positive:
        raise ValueError(
            f"alpha = {alpha!r}; wanted a positive temperature in the units of the values."
        )
    scale = alpha.unsqueeze(-1) if isinstance(alpha, Tensor) and alpha.dim() else alpha
    below = values - values.detach().amax(-1, keepdim=True)  # the quotient overflows downwards only
    return _distribution((below / scale).softmax(-1), "values")


@checked
def importance_weights(log_target: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Self-normalised importance weights softmax(log target - log proposal); neither density need be normalised.

    Args:
        log_target: [..., N], at draws from the proposal.
        log_proposal: [..., N], at the same draws.

    Returns:
        [..., N], differentiable.

    Raises:
        ValueError: on shapes that differ, or NaN.
    """
    if log_target.shape != log_proposal.shape:
        raise ValueError(
            f"log_target is {list(log_target.shape)}, log_proposal {list(log_proposal.shape)}; wanted the same draws."
        )
    _check(log_target)
    _check(log_proposal)
    return _distribution((log_target - log_proposal).softmax(-1), "log_target or log_proposal")


@checked
def top_k_weights(values: Tensor, *, k: int) -> Tensor:
    """1/K on the K best candidates (DFP Eq. 15), 0 elsewhere; ties are broken arbitrarily.

    A candidate of value -infinity is ruled out: if fewer than K are left, they share the weight.

    Args:
        values: [..., N].
        k: K.

    Returns:
        [..., N], without gradient.

    Raises:
        ValueError: unless 1 <= k <= N; on NaN values, or a row without a finite one.
    """
    _check(values)
    if not 1 <= k <= values.shape[-1]:
        raise ValueError(
            f"k = {k} of {values.shape[-1]} candidates; wanted between 1 and all of them."
        )
    best = values.detach().topk(k, dim=-1)
    kept = (best.values > -math.inf).double()  # half precision counts to 2,048
    shares = _distribution(kept / kept.sum(-1, keepdim=True), "values").to(values.dtype)
    return torch.zeros_like(values).scatter(-1, best.indices, shares).detach()


@checked
def level_set_weights(values: Tensor, *, threshold: float | Tensor) -> Tensor:
    """Uniform weights on the level set {Q >= threshold}, the limit of top-K for many candidates.

    Args:
        values: [..., N], Q.
        threshold: a number or [...].

    Returns:
        [..., N], without gradient.

    Raises:
        ValueError: when no candidate of some row reaches its threshold.
    """
    _check(values)
    level = (
        threshold.unsqueeze(-1) if isinstance(threshold, Tensor) and threshold.dim() else threshold
    )
    inside = (values >= level).double()
    count = inside.sum(-1, keepdim=True)
    if checkable(count) and not bool((count > 0).all()):
        raise ValueError(
            "no candidate reaches the threshold in some row; lower it, say to a quantile of the values."
        )
    return (inside / count).to(values.dtype)


@checked
def total_variation(a: Tensor, b: Tensor) -> Tensor:
    """The total variation Σ|a - b| / 2, in [0, 1], between two weightings of the same points.

    Args:
        a: [..., N].
        b: [..., N].

    Returns:
        [...], differentiable.

    Raises:
        ValueError: when the numbers of points differ, or a row does not sum to 1.
    """
    if a.dim() < 1 or b.dim() < 1 or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"a is {list(a.shape)}, b {list(b.shape)}; wanted weights of the same points, [..., N]."
        )
    for name, w in (("a", a), ("b", b)):
        total = w.detach().double().sum(-1)
        rounding = torch.finfo(w.dtype).eps ** 0.5 if w.is_floating_point() else 0.0
        if checkable(total) and not bool(((total - 1).abs() <= rounding).all()):
            raise ValueError(
                f"{name} has rows that do not sum to 1, or NaN; divide weights by {name}.sum(-1, keepdim=True)."
            )
    return _total_variation(a, b)


def _total_variation(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * (a - b).abs().sum(-1)


@checked
def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σw)² / Σw², in [1, N]: the number of equally weighted candidates with the same variance.

    Args:
        weights: [..., N].

    Returns:
        [...], differentiable.

    Raises:
        ValueError: on weights that are negative, NaN, infinite, or all zero in some row.
    """
    _check(weights)
    largest = weights.detach().amax(-1, keepdim=True)
    masses = (
        (weights.detach() >= 0).all(-1)
        & (largest > 0).squeeze(-1)
        & (largest < math.inf).squeeze(-1)
    )
    if checkable(masses) and not bool(masses.all()):
        raise ValueError(
            "weights hold a negative number or infinity, or a row without any mass; they are masses, w >= 0."
        )
    # Their squares may overflow or vanish; the ratio depends on no factor.
    shares = (weights / largest).double()  # half precision counts to 2,048
    return (shares.sum(-1).square() / shares.square().sum(-1)).to(weights.dtype)


@checked
def matched_temperature(values: Tensor, *, k: int, rounds: int = 4) -> tuple[Tensor, Tensor]:
    r"""The alpha whose tilt is closest to the top-K: argmin TV(uniform top-K, softmax(Q / alpha)), and that TV.

    An exact finite sum over the candidates, minimised over log alpha on a grid that is refined `rounds` times, between
    1e-6 and 1e6 times the range of the values. No tilt equals a top-K; the remaining TV measures their difference.

    Args:
        values: [..., N], Q.
        k: K of the top-K.
        rounds: refinements of the grid.

    Returns:
        (alpha [...], tv [...]), alpha in the units of Q; without gradient.

    Raises:
        ValueError: as `top_k_weights`.
    """
    dtype, values = values.dtype, values.detach().double()
    target = top_k_weights(values, k=k)
    top = values.amax(-1)
    tiny = torch.finfo(dtype).tiny
    lowest = values.masked_fill(values == -math.inf, math.inf).amin(-1)
    spread = (top - lowest).clamp_min(tiny)
    log_alpha, width = spread.log(), math.log(1e6)
    # A softmax is blind to the largest value, and nothing overflows.
    below = _distribution(values - top.unsqueeze(-1), "values")
    steps = torch.linspace(-1, 1, 81, dtype=values.dtype, device=values.device)
    tv = torch.ones_like(spread)
    for _ in range(rounds):
        grid = log_alpha.unsqueeze(-1) + width * steps
        tilts = (below.unsqueeze(-2) / grid.exp().clamp_min(tiny).unsqueeze(-1)).softmax(-1)
        best = _total_variation(tilts, target.unsqueeze(-2)).min(-1)
        tv = best.values
        log_alpha = grid.gather(-1, best.indices.unsqueeze(-1)).squeeze(-1)
        width /= 20
    return log_alpha.exp().clamp_min(tiny).to(dtype), tv.to(dtype)


def _distribution(weights: Tensor, names: str) -> Tensor:
    if checkable(weights) and bool(weights.isnan().any()):
        raise ValueError(
            f"{names} hold +infinity, or -infinity for all candidates of a row: no weights follow."
        )
    return weights


def _check(values: Tensor) -> None:
    if values.dim() < 1 or values.shape[-1] == 0 or not values.is_floating_point():
        raise ValueError(
            f"values are {list(values.shape)} {values.dtype}; wanted [..., N] with N >= 1 candidates, floating."
        )
    if checkable(values) and bool(values.isnan().any()):
        raise ValueError(
            "values hold NaN: a candidate without a value cannot be ranked; find it with values.isnan()."
        )
