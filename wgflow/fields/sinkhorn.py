r"""The Sinkhorn field: entropic transport plans in place of the kernel weights of Eq. 3 (He et al. 2026)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor, values_available
from wgflow.distances import sq_distances
from wgflow.fields.base import Field, refuse_lone_weights
from wgflow.kernels import positive
from wgflow.reductions import check_clouds, check_no_nan, require_unsharded
from wgflow.reductions.dense import MAX_EXPONENT, exact_centre

__all__ = ["SinkhornField", "sinkhorn_field"]


@checked_constructor
@dataclass(frozen=True, repr=False)
class SinkhornField(Field):
    """`sinkhorn_field` as a `Field`. Without `neg`, the negatives are the points, own point included.

    Args:
        epsilon: regularisation, a squared length; under `.relative()` a fraction of (E|x - y|)².
        iterations: rounds of Sinkhorn's iteration, at most that many with a tolerance.
        tolerance: of the marginals of each plan, or None for a fixed number of rounds.
    """

    epsilon: float
    iterations: int = 10
    tolerance: float | None = None

    def __post_init__(self) -> None:
        _check(self.epsilon, self.iterations, self.tolerance)

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        return sinkhorn_field(
            x,
            pos,
            neg,
            epsilon=self.epsilon,
            iterations=self.iterations,
            tolerance=self.tolerance,
            pos_weights=pos_weights,
            neg_weights=neg_weights,
        )


@checked
def sinkhorn_field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    epsilon: float,
    iterations: int = 10,
    tolerance: float | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    r"""V_i = Σ_j P_ij y_j - Σ_j P'_ij z_j: cross minus self projection of entropic plans (He et al. 2026).

    P and P' are the plans from the points to `pos` and to `neg` under the cost |x - y|²/2 and the regularisation
    ε KL(π || a ⊗ b), each row divided by its sum. No round at all gives Eq. 3 with h² = ε. Converged plans give
    V_i = -N ∇_i S of the Sinkhorn divergence S if `neg` is None, and of OT(x, pos) - OT(x, neg) otherwise.

    Args:
        x: [..., N, D] generated points, of equal weights.
        pos: [..., P, D] positives.
        neg: [..., M, D] negatives: a second batch of the generator makes E V = 0 at p = q (W-Flow). None: the points
            themselves. Own pairs are kept: without them V does not vanish at pos = x.
        epsilon: ε, a squared length: blur² of `Sinkhorn`, the ε of W-Flow, half of He et al.'s τ.
        iterations: K rounds, each an update of the potential of the points and of the samples.
        tolerance: stop when the marginals of a plan err by less than this (Σ|π 1 - a|, a sums to 1). The CPU waits for
            a GPU in every round then. None: all rounds.
        pos_weights: [..., P], w >= 0, marginals b of which only ratios matter.
        neg_weights: [..., M], likewise.

    Returns:
        [..., N, D], a length. Differentiable through all rounds in every tensor. Holds all pairs in memory, in float64.

    Raises:
        ValueError: on clouds or weights that do not fit, inside `wgflow.distributed.sharded`, on a bad setting.
        RuntimeWarning: where the rounds do not suffice for the tolerance.
    """
    _check(epsilon, iterations, tolerance)
    require_unsharded("sinkhorn_field")
    refuse_lone_weights(neg, neg_weights)
    neg = x if neg is None else neg
    check_clouds(x, pos, None, False, ("x", "pos"), weights=pos_weights)
    check_clouds(x, neg, None, False, ("x", "neg"), weights=neg_weights)
    check_clouds(pos, x, None, False, ("pos", "x"))  # columns are averages over x
    origin = exact_centre(pos.detach().double(), None)
    at, towards, away = (t.double() - origin for t in (x, pos, neg))
    settings = (epsilon, iterations, tolerance)
    V = _plan(at, towards, pos_weights, *settings) @ towards
    V = V - _plan(at, away, neg_weights, *settings) @ away
    check_no_nan(V - V.detach(), "x, pos, neg or a weight")  # infinity becomes NaN too
    return V.to(x.dtype)


def _plan(
    x: Tensor, y: Tensor, w: Tensor | None, epsilon: float, iterations: int, tolerance: float | None
) -> Tensor:
    """The plan after K rounds, each row divided by its sum: [..., N, M]."""
    C = sq_distances(x, y) / (2 * epsilon)
    b = None if w is None else (w.double() / w.double().sum(-1, keepdim=True)).unsqueeze(-2)
    f, g = C.new_full((), math.inf), C.new_zeros(())  # potentials over ε
    if y.shape[-2] == 1:
        iterations = 0  # a single sample takes all mass
    for _ in range(iterations):
        before, f = f, -_log_mean(g - C, b)
        following = -_log_mean((f - C).mT).mT
        if tolerance is None:
            g = following
            continue
        done = _marginal_error(before, f) <= tolerance
        if values_available(done) and bool(done.all()):
            break
        g = torch.where(done, g, following)  # the result of a cloud does not depend on its batch
    before, f = f, -_log_mean(g - C, b)
    if iterations and tolerance is not None:
        error = _marginal_error(before, f)
        if values_available(error) and not bool((error <= tolerance).all()):
            warnings.warn(
                f"{iterations} iterations left a marginal error of {float(error.max()):.0e}, above the tolerance "
                f"{tolerance}; allow more iterations or take a larger epsilon.",
                RuntimeWarning,
                stacklevel=4,
            )
    shares = (g - C + f).clamp_max(MAX_EXPONENT).exp()
    return shares / y.shape[-2] if b is None else shares * b


def _marginal_error(before: Tensor, f: Tensor) -> Tensor:
    """Σ_i |Σ_j π_ij - 1/N| of the plan of `before` and g, [..., 1, 1]; f is the optimal potential at that g."""
    return (before - f).expm1().abs().mean(-2, keepdim=True)


def _log_mean(logits: Tensor, w: Tensor | None = None) -> Tensor:
    """log Σ_j w_j exp(logits_ij), [..., N, 1], w [..., 1, M] summing to 1; its derivatives in w exist at w = 0 too."""
    if w is None:
        return logits.logsumexp(-1, keepdim=True) - math.log(logits.shape[-1])
    top = logits.detach().masked_fill(w == 0, -math.inf).amax(-1, keepdim=True)
    e = (logits - top).clamp_max(MAX_EXPONENT).exp()
    return (e @ w.mT).log() + top


def _check(epsilon: float, iterations: int, tolerance: float | None) -> None:
    """Refuse settings without a meaning. Raises: ValueError."""
    positive("epsilon", epsilon)
    if tolerance is not None:
        positive("tolerance", tolerance)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations = {iterations!r}; wanted a whole number >= 0, such as 10.")
