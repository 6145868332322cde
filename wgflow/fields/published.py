r"""The two-sided normalisation of the published drifting code, written from its description.

It needs the whole matrix of pairs with softmaxes along both of its dimensions, so it does not use the streaming sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgflow.arguments import checkable, checked, checked_constructor
from wgflow.distances import distances
from wgflow.fields.base import Field, InOwnUnit, rms
from wgflow.reductions import check_clouds, check_no_nan, require_unsharded
from wgflow.reductions.autograd import full_precision

__all__ = ["PublishedField", "published_field", "published_magnitudes", "published_scale"]

# The constants of the published code.
TEMPERATURES, SELF_DISTANCE, CLIP, RMS_FLOOR, SCALE_FLOOR = (
    (0.02, 0.05, 0.2),
    100.0,
    1e-6,
    1e-4,
    1e-3,
)


@checked_constructor
@dataclass(frozen=True, repr=False)
class PublishedField(Field):
    """`published_field` as a value. The points always repel each other, each at `self_distance` from itself; `neg`
    are further negatives beside them.

    Args:
        temperatures: R, fractions of the mean distance.
        dimensionless: return V in its own coordinates, divided by `published_scale`, in which every temperature
            contributes an rms of 1. False: a displacement in the units of x.
        self_distance: added to the distance of a point from itself.
        clip: lower bound of the product of the two softmaxes.
        rms_floor: lower bound of the rms that each V_R is divided by.
        scale_floor: lower bound of the mean distance.
    """

    temperatures: Sequence[float] = TEMPERATURES
    dimensionless: bool = False
    self_distance: float = SELF_DISTANCE
    clip: float = CLIP
    rms_floor: float = RMS_FLOOR
    scale_floor: float = SCALE_FLOOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if not self.temperatures or not all(0 < R < math.inf for R in self.temperatures):
            raise ValueError(
                f"temperatures = {self.temperatures!r}; wanted positive numbers such as (0.02, 0.05, 0.2)."
            )

    def __call__(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> Tensor:
        V, unit, _ = self._evaluate(x, pos, neg, None, pos_weights, neg_weights)
        return V if self.dimensionless else V * unit

    def in_own_unit(self, x, pos, *, neg=None, pos_weights=None, neg_weights=None) -> InOwnUnit:
        return self._evaluate(x, pos, neg, None, pos_weights, neg_weights)

    def standardized(self) -> Field:
        return self  # the normalisation is built in

    @checked
    def _evaluate(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor | None,
        x_weights: Tensor | None,
        pos_weights: Tensor | None,
        neg_weights: Tensor | None,
    ) -> InOwnUnit:
        """The field in its own coordinates, from one evaluation of the distances; magnitude: a mean over R."""
        joint = _joint(x, pos, neg, x_weights, pos_weights, neg_weights)
        dtype, (x, targets, weights) = x.dtype, _wide(x, *joint)
        with full_precision(x.device):
            d, unit = _distances(x, targets, weights, self.scale_floor)
            V, total = torch.zeros_like(x), torch.zeros_like(unit.detach())
            for V_R in _fields(x, targets, weights, pos.shape[-2], d, unit, self):
                V = V + V_R / rms(V_R, self.rms_floor)
                total = total + rms(V_R.detach())
        magnitude = total / len(self.temperatures)
        return InOwnUnit(V.to(dtype), unit.to(dtype), magnitude.to(dtype))


@checked
def published_field(
    x: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    x_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    self_distance: float = SELF_DISTANCE,
    clip: float = CLIP,
    rms_floor: float = RMS_FLOOR,
    scale_floor: float = SCALE_FLOOR,
) -> Tensor:
    r"""The field of the published drifting code, as a displacement in the units of x.

    Distances d are divided by their mean s over the whole batch (zero self distances included), `self_distance` is
    added to a point's own, and the joint logits over [x | neg | pos] are -d/(s R). A = sqrt(max(row softmax · column
    softmax, clip)) times the weights; S⁺, S⁻ are its sums over pos and over [x | neg]. In coordinates divided by
    s/sqrt(D), V_R = S⁺S⁻ (barycentre⁺ - barycentre⁻); each V_R is divided by its rms over the whole batch, and the
    results are summed over R.

    The rms hides the magnitude of the field (with one R the loss is 1 at any distance from the data). Once points are
    much closer to each other than to the data every affinity meets the clip and the group stays collapsed, without a
    sign of it in the loss: watch `spread_ratio` and `published_magnitudes`.

    Args:
        x: [..., N, D] generated points.
        pos: [..., P, D] positives.
        neg: [..., M, D] further negatives beside the points, or None.
        temperatures: R, fractions of the mean distance (the "h" of DFP's Table 5 is this R, not the h of Eq. 3).
        x_weights: [..., N], w >= 0, of the points as negatives; None: 1. The mean s is weighted too.
        pos_weights: [..., P], likewise.
        neg_weights: [..., M], likewise.
        self_distance: added to the distance of a point from itself, in units of s.
        clip: lower bound of the product of the two softmaxes.
        rms_floor: lower bound of the rms of V_R.
        scale_floor: lower bound of s.

    Returns:
        [..., N, D], a length. Differentiable, through s and the rms too.

    Raises:
        ValueError: on shapes, dtypes, empty sets, NaN, weights that are negative or of another shape, temperatures
            that are not positive.
    """
    field = PublishedField(
        temperatures,
        self_distance=self_distance,
        clip=clip,
        rms_floor=rms_floor,
        scale_floor=scale_floor,
    )
    V, unit, _ = field._evaluate(x, pos, neg, x_weights, pos_weights, neg_weights)
    return V * unit


@checked
def published_magnitudes(
    x: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    x_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
) -> Tensor:
    """The rms of each V_R before `published_field` divides by it, which its loss cannot show.

    Arguments and errors as `published_field`.

    Returns:
        [R], dimensionless, without gradient.
    """
    with torch.no_grad():
        joint = _joint(x, pos, neg, x_weights, pos_weights, neg_weights)
        dtype, (x, targets, weights) = x.dtype, _wide(x, *joint)
        field = PublishedField(temperatures)
        with full_precision(x.device):
            d, unit = _distances(x, targets, weights, SCALE_FLOOR)
            fields = _fields(x, targets, weights, pos.shape[-2], d, unit, field)
            return torch.stack([rms(V_R) for V_R in fields]).to(dtype)


@checked
def published_scale(
    x: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    x_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    neg_weights: Tensor | None = None,
    scale_floor: float = SCALE_FLOOR,
) -> Tensor:
    """s / sqrt(D), the length of one unit of the normalised coordinates of `published_field`; a scalar.

    Arguments and errors as `published_field`.
    """
    joint = _joint(x, pos, neg, x_weights, pos_weights, neg_weights)
    dtype, (x, targets, weights) = x.dtype, _wide(x, *joint)
    return _distances(x, targets, weights, scale_floor)[1].to(dtype)


def _wide(
    x: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments in float32 at least: half precision has no distances."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide), targets.to(wide), None if weights is None else weights.to(wide)


def _joint(x, pos, neg, x_weights, pos_weights, neg_weights) -> tuple[Tensor, Tensor | None]:
    """[x | neg | pos] with one common batch, and their weights (None when all are 1)."""
    require_unsharded("the published field")
    check_clouds(x, pos, None, False, ("x", "pos"))
    check_clouds(pos, x, None, False, ("pos", "x"))  # no x, no scale
    if neg is not None:
        check_clouds(x, neg, None, False, ("x", "neg"))
    elif neg_weights is not None:
        raise ValueError(
            "neg_weights came without neg; the weights of the points as negatives are x_weights of published_field."
        )
    for name, cloud, w in (
        ("x", x, x_weights),
        ("neg", neg, neg_weights),
        ("pos", pos, pos_weights),
    ):
        if cloud is not None and w is not None:
            _check_weights(name, cloud, w, x.shape[:-2])
    clouds = [x, pos] if neg is None else [x, neg, pos]
    weights = [x_weights, pos_weights] if neg is None else [x_weights, neg_weights, pos_weights]
    batch = x.shape[:-2]
    if 0 in batch:
        raise ValueError(
            f"x is {list(x.shape)}: an empty batch has no mean distance, the unit of the published field."
        )
    if any(torch.broadcast_shapes(batch, c.shape[:-2]) != batch for c in clouds):
        raise ValueError(
            f"pos or neg has leading dimensions beyond the {list(batch)} of x; expand x, one group a batch element."
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
    if not checkable(w):
        return
    if not bool((w.detach() >= 0).all()):
        raise ValueError(f"{name}_weights hold a negative number or NaN; they are masses, w >= 0.")
    # Negatives may all have weight 0: guidance of strength 1.
    if name == "pos" and not bool(w.detach().sum() > 0):
        raise ValueError("pos_weights are all zero, so nothing attracts; weigh one of them.")


def _distances(
    x: Tensor, targets: Tensor, weights: Tensor | None, scale_floor: float
) -> tuple[Tensor, Tensor]:
    """Distances divided by their mean s, and s / sqrt(D)."""
    d = distances(x, targets)
    s = d.mean() if weights is None else (d * weights.unsqueeze(-2)).mean() / weights.mean()
    check_no_nan(s - s.detach(), "x, pos, neg or a weight")  # infinity becomes NaN too
    s = s.clamp_min(scale_floor)
    return d / s, s / math.sqrt(x.shape[-1])


def _fields(
    x: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    positives: int,
    d: Tensor,
    unit: Tensor,
    field: PublishedField,
) -> Iterator[Tensor]:
    """V_R for each temperature, in coordinates divided by `unit`, before the normalisation."""
    own = torch.zeros(d.shape[-2:], dtype=d.dtype, device=d.device)
    own.diagonal().fill_(field.self_distance)
    d, negatives = d + own, d.shape[-1] - positives
    # The difference of barycentres does not depend on the origin; coordinates near it lose fewer digits.
    z = (targets - x.detach().mean(-2, keepdim=True)) / unit
    for R in field.temperatures:
        logits = d / -R
        A = (logits.softmax(-1) * logits.softmax(-2)).clamp_min(field.clip).sqrt()
        if weights is not None:
            A = A * weights.unsqueeze(-2)
        away, towards = A[..., :negatives], A[..., negatives:]
        s_neg, s_pos = away.sum(-1, keepdim=True), towards.sum(-1, keepdim=True)
        yield s_neg * (towards @ z[..., negatives:, :]) - s_pos * (away @ z[..., :negatives, :])
