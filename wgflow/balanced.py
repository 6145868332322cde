r"""The normalisation of the released drifting code, written from its published description, under its own name.

It holds the whole matrix of pairs and both of its softmaxes, so it is no algebra on the waist's sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.arguments import checked
from wgflow.reductions import check_clouds, check_no_nan, require_unsharded, values_available

__all__ = ["balanced_field", "balanced_magnitudes", "balanced_scale"]

SELF_DISTANCE, CLIP, SCALE_FLOOR = 100.0, 1e-6, 1e-3  # the constants of the release


@checked
def balanced_field(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    self_distance: float = SELF_DISTANCE,
    clip: float = CLIP,
    rms_floor: float = 1e-4,
    scale_floor: float = SCALE_FLOOR,
) -> Tensor:
    r"""The published normalisation of drifting models, as a displacement in the units of `gen`. It collapses silently.

    Distances d are divided by their mean s over the whole batch (zero self distances included), `self_distance` is
    added to a point's own, and the joint logits over [gen | neg | pos] are -d/(s R). A = sqrt(max(row softmax ·
    column softmax, clip)) times the weights; S⁺, S⁻ are its sums over pos and over [gen | neg]; on coordinates
    divided by s/sqrt(D) V_R = S⁺S⁻(barycentre⁺ - barycentre⁻); each V_R is divided by its rms over the whole batch;
    these are summed over R. The rms hides the size of the field (one R: the loss is 1 at any distance from the data),
    and once points are much closer to each other than to the data every affinity meets the clip and the group never
    opens again: watch `spread_ratio` and `balanced_magnitudes`.

    Args:
        gen: [..., G, D]; pos: [..., P, D]; neg: [..., M, D] extra negatives or None.
        temperatures: R, fractions of the mean distance (the "h" of DFP's Table 5 is this R, not the h of Eq. 3).
        gen_weights, pos_weights, neg_weights: [..., G], [..., P], [..., M], or None for 1; the mean s is weighted too.
        self_distance, clip, rms_floor, scale_floor: the constants of the release, s and V_R being dimensionless there.
    Returns: [..., G, D], a length. Differentiable, through s and the rms too. Holds all pairs: not the waist's sum.
    Raises: ValueError on shapes, dtypes, empty sets, NaN, weights that are negative or of another shape,
        temperatures that are not positive.
    """
    V, unit = balanced_parts(
        gen, pos, neg=neg, temperatures=temperatures, gen_weights=gen_weights, pos_weights=pos_weights,
        neg_weights=neg_weights, self_distance=self_distance, clip=clip, rms_floor=rms_floor, scale_floor=scale_floor,
    )  # fmt: skip
    return V * unit


def balanced_parts(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    self_distance: float = SELF_DISTANCE,
    clip: float = CLIP,
    rms_floor: float = 1e-4,
    scale_floor: float = SCALE_FLOOR,
) -> tuple[Tensor, Tensor]:
    """`balanced_field` in its own coordinates, and their unit (`balanced_scale`): one pass over the distances."""
    targets, weights = _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights)
    d, unit = _distances(gen, targets, weights, scale_floor)
    V = torch.zeros_like(gen)
    for V_R in _fields(
        gen, targets, weights, pos.shape[-2], d, unit, temperatures, self_distance, clip
    ):
        V = V + V_R / _rms(V_R, rms_floor)
    return V, unit


@checked
def balanced_magnitudes(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    """The rms of each V_R before `balanced_field` divides by it: what its loss cannot show. [R], dimensionless."""
    with torch.no_grad():
        targets, weights = _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights)
        d, unit = _distances(gen, targets, weights, SCALE_FLOOR)
        fields = _fields(
            gen, targets, weights, pos.shape[-2], d, unit, temperatures, SELF_DISTANCE, CLIP
        )
        return torch.stack([_rms(V_R) for V_R in fields])


@checked
def balanced_scale(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    gen_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    scale_floor: float = SCALE_FLOOR,
) -> Tensor:
    """s / sqrt(D) of `balanced_field`: the length that one unit of its normalised coordinates has. A scalar."""
    targets, weights = _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights)
    return _distances(gen, targets, weights, scale_floor)[1]


def _joint(gen, pos, neg, gen_weights, pos_weights, neg_weights) -> tuple[Tensor, Tensor | None]:
    """[gen | neg | pos] with one common batch, and their weights (None when all are 1)."""
    require_unsharded("the balanced field")
    check_clouds(gen, pos, None, False, ("gen", "pos"))
    check_clouds(pos, gen, None, False, ("pos", "gen"))  # no gen, no scale
    if neg is not None:
        check_clouds(gen, neg, None, False, ("gen", "neg"))
    elif neg_weights is not None:
        raise ValueError(
            "neg_weights came without neg; to weigh the generated points as negatives, use gen_weights."
        )
    for name, cloud, w in (
        ("gen", gen, gen_weights),
        ("neg", neg, neg_weights),
        ("pos", pos, pos_weights),
    ):
        if cloud is not None and w is not None:
            _check_weights(name, cloud, w, gen.shape[:-2])
    clouds = [gen, pos] if neg is None else [gen, neg, pos]
    weights = [gen_weights, pos_weights] if neg is None else [gen_weights, neg_weights, pos_weights]
    batch = gen.shape[:-2]
    if any(torch.broadcast_shapes(batch, c.shape[:-2]) != batch for c in clouds):
        raise ValueError(
            f"pos or neg has leading dimensions beyond the {list(batch)} of gen; expand gen, one group a batch element."
        )
    targets = torch.cat([c.expand(batch + c.shape[-2:]) for c in clouds], -2)
    if all(w is None for w in weights):
        return targets, None
    full = [
        c.new_ones(batch + c.shape[-2:-1]) if w is None else w.expand(batch + c.shape[-2:-1])
        for w, c in zip(weights, clouds, strict=True)
    ]
    return targets, torch.cat(full, -1)


def _check_weights(name: str, cloud: Tensor, w: Tensor, batch: torch.Size) -> None:
    wanted = [*batch, cloud.shape[-2]]
    fits = w.dim() <= len(wanted) and all(
        a in (1, b) for a, b in zip(w.shape[::-1], wanted[::-1], strict=False)
    )
    if (
        not fits
        or w.dim() == 0
        or w.shape[-1] != cloud.shape[-2]
        or w.dtype != cloud.dtype
        or w.device != cloud.device
    ):
        raise ValueError(
            f"{name}_weights are {list(w.shape)} {w.dtype} on {w.device}; wanted {wanted} {cloud.dtype} on "
            f"{cloud.device}, one for each point of {name}."
        )
    if not values_available(w):
        return
    if not bool((w.detach() >= 0).all()):
        raise ValueError(f"{name}_weights hold a negative number or NaN; they are masses, w >= 0.")
    if name == "pos" and not bool(
        w.detach().sum() > 0
    ):  # negatives may all weigh nothing: guidance of strength 1
        raise ValueError("pos_weights are all zero, so nothing attracts; weigh one of them.")


def _distances(
    gen: Tensor, targets: Tensor, weights: Tensor | None, scale_floor: float
) -> tuple[Tensor, Tensor]:
    """Distances divided by their mean s, and s / sqrt(D)."""
    d = torch.cdist(gen, targets, compute_mode="donot_use_mm_for_euclid_dist")
    s = d.mean() if weights is None else (d * weights.unsqueeze(-2)).mean() / weights.mean()
    check_no_nan(s - s.detach(), "gen, pos, neg or a weight")  # infinity becomes NaN too
    s = s.clamp_min(scale_floor)
    return d / s, s / math.sqrt(gen.shape[-1])


def _fields(
    gen: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    positives: int,
    d: Tensor,
    unit: Tensor,
    temperatures: tuple[float, ...],
    self_distance: float,
    clip: float,
) -> Iterator[Tensor]:
    """V_R for each temperature, in coordinates divided by `unit`, before any rms."""
    if not temperatures or not all(0 < R < math.inf for R in temperatures):
        raise ValueError(
            f"temperatures = {temperatures!r}; wanted positive numbers such as (0.02, 0.05, 0.2)."
        )
    own = torch.zeros(d.shape[-2:], dtype=d.dtype, device=d.device)
    own.diagonal().fill_(self_distance)
    d, negatives = d + own, d.shape[-1] - positives
    # The difference of barycentres does not see where the origin is; near it, coordinates keep their digits.
    z = (targets - gen.detach().mean(-2, keepdim=True)) / unit
    for R in temperatures:
        logits = d / -R
        A = (logits.softmax(-1) * logits.softmax(-2)).clamp_min(clip).sqrt()
        if weights is not None:
            A = A * weights.unsqueeze(-2)
        away, towards = A[..., :negatives], A[..., negatives:]
        s_neg, s_pos = away.sum(-1, keepdim=True), towards.sum(-1, keepdim=True)
        yield s_neg * (towards @ z[..., negatives:, :]) - s_pos * (away @ z[..., :negatives, :])


def _rms(V: Tensor, floor: float = 0.0) -> Tensor:
    # The floor goes in before the root, whose slope at 0 is infinite.
    return V.square().mean().clamp_min(floor**2).sqrt()
