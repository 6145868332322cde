r"""The normalisation of the released drifting code, written from its published description, under its own name.

It holds the whole matrix of pairs and both of its softmaxes, so it is no algebra on the waist's sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.sums import check_clouds, refuse_nan

__all__ = ["balanced_field", "balanced_scale"]


def balanced_field(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    self_distance: float = 100.0,
    clip: float = 1e-6,
    rms_floor: float = 1e-4,
    scale_floor: float = 1e-3,
) -> Tensor:
    r"""The published normalisation of drifting models, as a displacement in the units of `gen`. Collapses
    silently: see below.

    Distances d are divided by their mean s over the whole batch (zero self distances included),
    `self_distance` is added to a point's own, and the joint logits over [gen | neg | pos] are -d/(s R). A =
    sqrt(max(row softmax · column softmax, clip)) times the weights; S⁺, S⁻ are its sums over pos and over
    [gen | neg]; on coordinates divided by s/sqrt(D) V_R = S⁺S⁻(barycentre⁺ - barycentre⁻); each V_R is
    divided by its rms over the whole batch and these are summed over R. The rms hides the size of the field
    (one R: the loss is 1 at any distance from the data), and once points are much closer to each other than
    to the data every affinity meets the clip and the group never opens again: watch `spread_ratio`.

    Args:
        gen: [..., G, D]; pos: [..., P, D]; neg: [..., M, D] extra negatives or None; weights [..., G], [...,
            P], [..., M].
        temperatures: R, fractions of the mean distance (the "h" of DFP's Table 5 is this R, not the h of Eq.
            3).
    Returns: [..., G, D], a length. Differentiable, through s and the rms too. Holds all pairs: this is not
        the waist's sum.
    Raises: ValueError on shapes, dtypes, empty sets, temperatures that are not positive.
    """
    check_clouds(gen, pos, None, False, ("gen", "pos"))
    if neg is not None:
        check_clouds(gen, neg, None, False, ("gen", "neg"))
    if not temperatures or not all(0 < R < math.inf for R in temperatures):
        raise ValueError(
            f"temperatures = {temperatures!r}; wanted positive numbers such as (0.02, 0.05, 0.2)."
        )
    targets, weights = _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights)
    d = torch.cdist(gen, targets, compute_mode="donot_use_mm_for_euclid_dist")
    s = _mean_distance(d, weights).clamp_min(scale_floor)
    refuse_nan(s, "gen, pos, neg or a weight")
    unit = s / math.sqrt(gen.shape[-1])
    negatives = targets.shape[-2] - pos.shape[-2]
    own = torch.zeros(d.shape[-2:], dtype=d.dtype, device=d.device)
    own.diagonal().fill_(self_distance)
    d = d / s + own
    # The difference of barycentres does not see where the origin is; near it, coordinates keep their digits.
    y = (targets - gen.detach().mean(-2, keepdim=True)) / unit

    V = torch.zeros_like(gen)
    for R in temperatures:
        logits = d / -R
        A = (logits.softmax(-1) * logits.softmax(-2)).clamp_min(clip).sqrt()
        if weights is not None:
            A = A * weights.unsqueeze(-2)
        away, towards = A[..., :negatives], A[..., negatives:]
        V_R = away.sum(-1, keepdim=True) * (towards @ y[..., negatives:, :]) - towards.sum(
            -1, keepdim=True
        ) * (away @ y[..., :negatives, :])
        V = V + V_R / V_R.square().mean().sqrt().clamp_min(rms_floor)
    return V * unit


def balanced_scale(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    """s / sqrt(D) of `balanced_field`: the length one unit of its normalised coordinates has. Scalar,
    differentiable.
    """
    targets, weights = _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights)
    d = torch.cdist(gen, targets, compute_mode="donot_use_mm_for_euclid_dist")
    return _mean_distance(d, weights) / math.sqrt(gen.shape[-1])


def _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights) -> tuple[Tensor, Tensor | None]:
    """[gen | neg | pos] with one common batch, and their weights (None when all are 1)."""
    clouds = [gen, pos] if neg is None else [gen, neg, pos]
    weights = [gen_weights, pos_weights] if neg is None else [gen_weights, neg_weights, pos_weights]
    batch = gen.shape[:-2]
    targets = torch.cat([c.expand(batch + c.shape[-2:]) for c in clouds], -2)
    if all(w is None for w in weights):
        return targets, None
    full = [
        c.new_ones(batch + c.shape[-2:-1]) if w is None else w.expand(batch + c.shape[-2:-1])
        for w, c in zip(weights, clouds, strict=True)
    ]
    return targets, torch.cat(full, -1)


def _mean_distance(d: Tensor, weights: Tensor | None) -> Tensor:
    return d.mean() if weights is None else (d * weights.unsqueeze(-2)).mean() / weights.mean()
