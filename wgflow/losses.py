r"""Losses for any generator: a field says where points should go, a regression onto moved points takes them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wgflow.arguments import checked
from wgflow.fields import PublishedField
from wgflow.metrics import spread_ratio
from wgflow.sums import check_clouds

__all__ = ["DriftingLoss", "DriftingReport", "drifting_loss", "guidance_weight", "regress_onto"]


@checked
def regress_onto(x: Tensor, velocity: Tensor) -> Tensor:
    r"""mean |x - sg(x + v)|² over all elements: its gradient at x is -2 v / numel, its value mean v².

    Args: x: any shape, the generator's output, with gradient; velocity: the same shape, detached here.
    Returns: a scalar, length². Gradient to x only. Raises: ValueError when the shapes differ or x is empty.
    """
    if x.shape != velocity.shape:
        raise ValueError(
            f"velocity is {list(velocity.shape)} but x is {list(x.shape)}; wanted the same shape: one velocity a point."
        )
    if x.numel() == 0:
        raise ValueError(
            f"x is empty ({list(x.shape)}): there is nothing to regress. Leave the term out instead."
        )
    # (x - sg x) - sg v rather than x - sg(x + v): the same number, without rounding v to the size of x.
    return ((x - x.detach()) - velocity.detach()).square().mean()


@checked
def drifting_loss(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    neg_weights: Tensor | None = None,
    field: Callable[..., Tensor] | None = None,
) -> Tensor:
    r"""The loss of drifting models: regress the generated points onto themselves moved by a field.

    Without `field` it is the released objective, `published_field` in its own coordinates x / (s / sqrt(D)): constant (1
    with one temperature), so watch `published_magnitudes` and `spread_ratio`, not this value.

    Args:
        gen: [..., G, D] generated points, with gradient; pos: [..., P, D] data.
        neg, neg_weights: [..., M, D] and [..., M], extra negatives, for instance of classifier-free guidance.
        field: (gen, pos) -> [..., G, D], for instance `energy_field`; it has its own negatives, so without neg.
    Returns: a scalar: dimensionless without `field`, length² with one. Gradient to gen only, by regression.
    Raises: ValueError as the field does; neg together with field.
    """
    return _loss_and_unit(gen, pos, neg, neg_weights, field)[0]


def _loss_and_unit(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    neg_weights: Tensor | None,
    field: Callable[..., Tensor] | None,
) -> tuple[Tensor, Tensor | float]:
    """`drifting_loss`, and the length that one unit of its coordinates has."""
    x, y = gen.detach(), pos.detach()
    if field is not None:
        if neg is not None:
            raise ValueError(
                "neg came with field, which takes its own negatives: field=lambda x, y: energy_field(x, y, neg)."
            )
        return regress_onto(gen, field(x, y)), 1.0
    V, unit = PublishedField().in_own_unit(
        x, y, neg=None if neg is None else neg.detach(), neg_weights=neg_weights
    )
    return regress_onto(gen / unit, V), unit


@checked
def guidance_weight(strength: float, *, gen: int, neg: int) -> float:
    r"""The weight of each of `neg` unconditional negatives beside `gen` generated points, for guidance of some
    strength.

    Negatives are then (1 - γ) q + γ p_∅ with 1 / (1 - γ) = a, the strength; at rest q = a p_c - (a - 1) p_∅. A point
    does not repel itself, so gen - 1 count. Raises: ValueError on a strength below 1, gen < 2 or neg < 1.
    """
    if not strength >= 1 or gen < 2 or neg < 1:
        raise ValueError(
            f"strength = {strength}, gen = {gen}, neg = {neg}; wanted >= 1, >= 2 and >= 1."
        )
    return (gen - 1) * (strength - 1) / neg


class DriftingReport(NamedTuple):
    """`loss` to differentiate, and what it cannot show: the rms of the displacement and `spread_ratio`, in features."""

    loss: Tensor
    displacement: Tensor
    spread: Tensor


@checked
class DriftingLoss(nn.Module):
    r"""`drifting_loss` over feature spaces, with guidance: the training objective of a drifting generator.

    Args:
        features: maps [..., D] -> [..., F], each applied to gen, pos and neg; the losses are averaged. None: the points
            themselves. Modules are registered but not trained here: freeze them, gradients pass through them to gen.
        field: (gen, pos) -> velocity in feature space, or None for the released objective.
        guidance: strength >= 1; above 1, `forward` wants unconditional data as `neg`.
    Shapes of `forward(gen, pos, neg)`: [..., G, D], [..., P, D], [..., M, D]; classes lead, each with
    its own positives. Returns a `DriftingReport`; the gradient reaches gen only.
    Raises: ValueError on guidance without neg or with a field, and as the field does.
    """

    def __init__(
        self,
        *,
        features: list[Callable[[Tensor], Tensor]] | None = None,
        field: Callable[..., Tensor] | None = None,
        guidance: float = 1.0,
    ):
        super().__init__()
        if field is not None and guidance != 1:
            raise ValueError(
                "guidance came with field; put its negatives into the field: field=lambda x, y: ..."
            )
        if features is not None and not features:
            raise ValueError(
                "features is empty; wanted maps [..., D] -> [..., F], or None for the points themselves."
            )
        self.maps = list(features) if features is not None else [_identity]
        self.modules_among_maps = nn.ModuleList(m for m in self.maps if isinstance(m, nn.Module))
        self.field, self.guidance = field, guidance

    def forward(self, gen: Tensor, pos: Tensor, neg: Tensor | None = None) -> DriftingReport:
        weights = None
        check_clouds(gen, pos, None, False, ("gen", "pos"))
        if neg is not None:
            check_clouds(gen, neg, None, False, ("gen", "neg"))
            w = guidance_weight(self.guidance, gen=gen.shape[-2], neg=neg.shape[-2])
            weights = neg.new_full(neg.shape[:-1], w)
        elif self.guidance != 1:
            raise ValueError(
                f"guidance = {self.guidance} needs unconditional data; pass it as neg [..., M, D]."
            )
        reports = []
        for phi in self.maps:
            x = phi(gen)
            with torch.no_grad():
                y, z = phi(pos), None if neg is None else phi(neg)
            loss, unit = _loss_and_unit(x, y, z, weights, self.field)
            reports.append((loss, loss.detach().sqrt() * unit, spread_ratio(x, y)))
        losses, displacements, spreads = (
            torch.stack(column).mean() for column in zip(*reports, strict=True)
        )
        return DriftingReport(losses, displacements, spreads)


def _identity(x: Tensor) -> Tensor:
    return x
