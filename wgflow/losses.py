r"""Losses for generators: regress the generated points onto themselves moved by a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wgflow.arguments import checked
from wgflow.fields import Field, PublishedField
from wgflow.metrics import spread_ratio
from wgflow.reductions import check_clouds

__all__ = ["DriftingLoss", "DriftingReport", "drifting_loss", "guidance_weight", "regress_onto"]


@checked
def regress_onto(x: Tensor, velocity: Tensor) -> Tensor:
    r"""mean |x - sg(x + v)|² over all elements: its gradient at x is -2 v / numel, its value mean v².

    Args:
        x: any shape, the output of the generator, with gradient.
        velocity: the same shape; detached here.

    Returns:
        A scalar, length². Its gradient reaches x only.

    Raises:
        ValueError: when the shapes differ or x is empty.
    """
    if x.shape != velocity.shape:
        raise ValueError(
            f"velocity is {list(velocity.shape)} but x is {list(x.shape)}; wanted the same shape, one velocity per "
            "point."
        )
    if x.numel() == 0:
        raise ValueError(
            f"x is empty ({list(x.shape)}): there is nothing to regress. Leave the term out instead."
        )
    # (x - sg x) - sg v rather than x - sg(x + v): the same number, without rounding v to the size of x.
    return ((x - x.detach()) - velocity.detach()).square().mean()


@checked
def drifting_loss(
    x: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    neg_weights: Tensor | None = None,
    field: Callable[..., Tensor] = PublishedField(),  # noqa: B008 - a frozen value
) -> Tensor:
    r"""The loss of drifting models: mean |x - sg(x + V)|², V the field at the generated points.

    A `PublishedField` is regressed in its own coordinates, as the published code does: the loss is then constant (1
    with one temperature), so watch `published_magnitudes` and `spread_ratio` instead.

    Args:
        x: [..., N, D] generated points, with gradient.
        pos: [..., P, D] data.
        neg: [..., M, D] negatives, with the meaning they have for the field; or None.
        neg_weights: [..., M], or None.
        field: a field such as `EnergyField()`, or a function (x, pos) -> [..., N, D].

    Returns:
        A scalar, dimensionless for a `PublishedField`, else length². Its gradient reaches x only.

    Raises:
        ValueError: as the field does.
    """
    return _loss_and_unit(x, pos, neg, neg_weights, field)[0]


def _loss_and_unit(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    neg_weights: Tensor | None,
    field: Callable[..., Tensor],
) -> tuple[Tensor, Tensor | float]:
    """`drifting_loss`, and the length of one unit of its coordinates."""
    negatives = {"neg": neg, "neg_weights": neg_weights}
    given = {name: t.detach() for name, t in negatives.items() if t is not None}
    if isinstance(field, Field):
        V, unit = field.in_own_unit(x.detach(), pos.detach(), **given)
    else:
        V, unit = field(x.detach(), pos.detach(), **given), 1.0
    return regress_onto(x / unit, V), unit


@checked
def guidance_weight(strength: float, *, gen: int, neg: int) -> float:
    r"""The weight of each of `neg` unconditional negatives beside `gen` generated points, for classifier-free guidance.

    Negatives are then (1 - γ) q + γ p_∅ with 1 / (1 - γ) = a, the strength; at rest q = a p_c - (a - 1) p_∅. A point
    does not repel itself, so gen - 1 of them count.

    Raises:
        ValueError: on a strength below 1, gen < 2 or neg < 1.
    """
    if not strength >= 1 or gen < 2 or neg < 1:
        raise ValueError(
            f"strength = {strength}, gen = {gen}, neg = {neg}; wanted >= 1, >= 2 and >= 1."
        )
    return (gen - 1) * (strength - 1) / neg


class DriftingReport(NamedTuple):
    """The loss to differentiate, with the rms displacement and the `spread_ratio` in feature space, as diagnostics."""

    loss: Tensor
    displacement: Tensor
    spread: Tensor


@checked
class DriftingLoss(nn.Module):
    r"""`drifting_loss` averaged over feature spaces, with guidance: the training objective of a drifting generator.

    Called as loss(x, pos, neg=None) with x [N, D], pos [P, D], neg [M, D], or with classes along one
    leading dimension, each with its own positives. With `features`, x, pos and neg are whatever
    these accept, for example images [N, C, H, W]; the shapes above are then those of the feature
    vectors. Returns a `DriftingReport`; the gradient reaches x only.

    Args:
        field: a field such as `EnergyField()`, or a function (x, pos) -> velocity, evaluated in feature space.
        features: maps to feature vectors, [N, ...] -> [N, F], applied to x, pos and neg. None: the
            points themselves. Modules are registered but not trained here: freeze them; gradients
            pass through them to x.
        guidance: strength >= 1 of classifier-free guidance, for a `PublishedField`; above 1 the call needs
            unconditional data as `neg`.

    Raises:
        ValueError: on guidance with another field or without neg, on points or feature vectors with
            more than one leading dimension, and as the field does.
    """

    def __init__(
        self,
        field: Callable[..., Tensor] = PublishedField(),  # noqa: B008 - a frozen value
        *,
        features: Sequence[Callable[[Tensor], Tensor]] | None = None,
        guidance: float = 1.0,
    ):
        super().__init__()
        if guidance != 1 and not isinstance(field, PublishedField):
            raise ValueError(
                f"guidance = {guidance} came with {field!r}; wanted a PublishedField. For another field, add the "
                "repulsion to it: lambda x, pos: field(x, pos) + (guidance - 1) * field(x, pos, neg=unconditional)."
            )
        if features is not None and not features:
            raise ValueError(
                "features is empty; wanted maps [N, ...] -> [N, F], or None for the points."
            )
        maps = [nn.Identity()] if features is None else features
        self.features = nn.ModuleList(m if isinstance(m, nn.Module) else _Map(m) for m in maps)
        self.field, self.guidance = field, guidance

    def forward(self, x: Tensor, pos: Tensor, neg: Tensor | None = None) -> DriftingReport:
        if neg is None and self.guidance != 1:
            raise ValueError(
                f"guidance = {self.guidance} needs unconditional data; pass it as neg [..., M, D]."
            )
        reports = []
        for i, phi in enumerate(self.features):
            a = phi(x)
            with torch.no_grad():
                b, c = phi(pos), None if neg is None else phi(neg)
            label = "{}" if isinstance(phi, nn.Identity) else f"features[{i}]({{}})"
            _check_points(label, x=a, pos=b, neg=c)
            weights = None
            if c is not None and isinstance(self.field, PublishedField):
                w = guidance_weight(self.guidance, gen=a.shape[-2], neg=c.shape[-2])
                weights = c.new_full(c.shape[:-1], w)
            loss, unit = _loss_and_unit(a, b, c, weights, self.field)
            reports.append((loss, loss.detach().sqrt() * unit, spread_ratio(a, b)))
        losses, displacements, spreads = (
            torch.stack(column).mean() for column in zip(*reports, strict=True)
        )
        return DriftingReport(losses, displacements, spreads)

    def extra_repr(self) -> str:
        return f"field={self.field!r}, guidance={self.guidance:g}"


def _check_points(label: str, *, x: Tensor, pos: Tensor, neg: Tensor | None) -> None:
    """Refuse what is not [N, D] or [classes, N, D] in feature space. Raises: ValueError."""
    given = {
        label.format(name): t for name, t in (("x", x), ("pos", pos), ("neg", neg)) if t is not None
    }
    for name, t in given.items():
        if t.dim() > 3:
            raise ValueError(
                f"{name} is {list(t.shape)}; wanted points [N, D] or [classes, N, D]. Images need "
                "feature vectors: DriftingLoss(features=[network]) with a network that returns "
                "[N, F], or features=[lambda t: t.flatten(1)] for their pixels."
            )
    first, *others = given
    for other in others:
        check_clouds(given[first], given[other], None, False, (first, other))


class _Map(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
