r"""The Sinkhorn field: entropic transport plans in place of the kernel weights of Eq. 3 (He et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checked, checked_constructor
from wgflow.distances import sq_distances
from wgflow.fields.base import Field, refuse_lone_weights
from wgflow.kernels import positive
from wgflow.reductions import check_clouds, check_no_nan, require_unsharded
from wgflow.reductions.dense import exact_centre
from wgflow.transport import row_plan

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
        positive("epsilon", self.epsilon)
        if self.tolerance is not None:
            positive("tolerance", self.tolerance)
        if self.iterations < 0:
            raise ValueError(f"iterations = {self.iterations}; wanted at least 0, such as 10.")

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
        neg: [..., M, D] negatives: a second batch of the generator, as large as `pos`, makes E V = 0 at p = q (Han et
            al. 2026, W-Flow). None: the points themselves, own pairs included; without them V(x; pos=x) is not 0.
        epsilon: ε, a squared length: blur² of `Sinkhorn`, the ε of Han et al., half of He et al.'s τ.
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
    field = SinkhornField(epsilon, iterations, tolerance)
    require_unsharded("sinkhorn_field")
    refuse_lone_weights(neg, neg_weights)
    check_clouds(x, pos, None, False, ("x", "pos"), weights=pos_weights)
    if neg is not None:
        check_clouds(x, neg, None, False, ("x", "neg"), weights=neg_weights)
    check_clouds(pos, x, None, False, ("pos", "x"))  # columns are averages over x
    # Float32 input has digits to spare without an origin.
    origin = exact_centre(pos.detach(), None) if x.dtype == torch.float64 else 0.0
    at, towards = x.double() - origin, pos.double() - origin
    away = at if neg is None else neg.double() - origin
    V = _plan(at, towards, pos_weights, field) @ towards
    V = V - _plan(at, away, neg_weights, field) @ away
    check_no_nan(V - V.detach(), "x, pos, neg or a weight")  # infinity becomes NaN too
    return V.to(x.dtype)


def _plan(x: Tensor, y: Tensor, w: Tensor | None, field: SinkhornField) -> Tensor:
    if y.shape[-2] == 1:
        return torch.ones_like(x[..., :1])  # a single sample takes all mass
    C = sq_distances(x, y) / (2 * field.epsilon)
    b = None if w is None else w.double() / w.double().sum(-1, keepdim=True)
    return row_plan(C, b, iterations=field.iterations, tolerance=field.tolerance)
