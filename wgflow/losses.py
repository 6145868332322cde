r"""Losses for generators: regress the generated points onto themselves moved by a field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wgflow.arguments import checkable, checked, draw_device, widened
from wgflow.distributed.processes import Processes
from wgflow.features import FeatureFunction, feature_maps
from wgflow.fields import Field, InOwnUnit, PublishedField
from wgflow.metrics import spread_ratio
from wgflow.reductions import check_clouds

__all__ = [
    "DriftingLoss",
    "DriftingReport",
    "draw_guidance",
    "drifting_loss",
    "guidance_weight",
    "regress_onto",
]


@checked
def regress_onto(x: Tensor, velocity: Tensor) -> Tensor:
    r"""mean |x - sg(x + v)|² over all elements: its gradient at x is -2 v / numel, its value mean v².

    Args:
        x: any shape, the output of the generator, with gradient.
        velocity: the same shape; detached here.

    Returns:
        A scalar, length², in float32 for half precision. Its gradient reaches x only.

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
    gap = (x - x.detach()) - velocity.detach()
    return widened(gap).square().mean()


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
    V, unit, _ = _in_own_unit(x.detach(), pos.detach(), neg, neg_weights, field)
    return regress_onto(x / unit, V)


def _in_own_unit(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    neg_weights: Tensor | None,
    field: Callable[..., Tensor],
) -> InOwnUnit:
    """The field or function at x, in the unit of its loss."""
    negatives = {"neg": neg, "neg_weights": neg_weights}
    given = {name: t.detach() for name, t in negatives.items() if t is not None}
    if isinstance(field, Field):
        return field.in_own_unit(x, pos, **given)
    V = field(x, pos, **given)
    return InOwnUnit(V, 1.0, V.detach().square().mean().sqrt())


@checked
def guidance_weight(strength: float | Tensor, *, gen: int, neg: int) -> float | Tensor:
    r"""The weight of each of `neg` unconditional negatives beside `gen` generated points, for classifier-free guidance.

    Negatives are then (1 - γ) q + γ p_∅ with 1 / (1 - γ) = a, the strength; at rest q = a p_c - (a - 1) p_∅. A point
    does not repel itself, so gen - 1 of them count.

    Args:
        strength: a >= 1, a number or a tensor of any shape, one per group.
        gen: N, the number of generated points per group.
        neg: M, the number of unconditional negatives.

    Returns:
        The weight, of the shape of `strength`.

    Raises:
        ValueError: on a strength below 1, gen < 2 or neg < 1.
    """
    strong = (
        not checkable(strength) or bool((strength >= 1).all())
        if isinstance(strength, Tensor)
        else strength >= 1
    )
    if not strong or gen < 2 or neg < 1:
        raise ValueError(
            f"strength = {strength}, gen = {gen}, neg = {neg}; wanted >= 1, >= 2 and >= 1."
        )
    return (gen - 1) * (strength - 1) / neg


@checked
def draw_guidance(
    n: int, *, power: float = 3.0, largest: float = 4.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw strengths of guidance from the density ∝ a^-power on [1, largest] (Deng et al. 2026), one per group.

    Pass them to `DriftingLoss` and to the generator as an input, so that the strength can be chosen when sampling.

    Args:
        n: the number of groups.
        power: k > 1; the mean for k = 3 and largest 4 is 1.6.
        largest: >= 1.
        generator: of the draws; None: torch's default generator.

    Returns:
        [n], on the device of `generator`.

    Raises:
        ValueError: on power <= 1, largest < 1 or a negative n.
    """
    if n < 0:
        raise ValueError(f"n = {n}; wanted a number of groups, at least 0.")
    if not power > 1 or not largest >= 1:
        raise ValueError(f"power = {power}, largest = {largest}; wanted > 1 and >= 1.")
    device = draw_device(generator, torch.device("cpu"))
    u = torch.rand(n, generator=generator, device=device)
    # a = (1 + u (largest^(1-k) - 1))^(1 / (1-k)), in logarithms, which keep their digits for k near 1.
    scaled = math.expm1((1 - power) * math.log(largest))
    drawn = ((u.double() * scaled).log1p() / (1 - power)).exp()
    return drawn.clamp(1, largest).to(u.dtype)


class DriftingReport(NamedTuple):
    """The loss to differentiate, and what it cannot show: weighted means over the maps of features, without
    gradient.

    displacement: the rms of the field in its own unit before any normalisation; real samples in place of generated ones
    give its floor. spread: `spread_ratio`, which falls towards 0 where generated points collapse.
    """

    loss: Tensor
    displacement: Tensor
    spread: Tensor


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(map(float, weights))
    except (TypeError, ValueError):
        found = ()
    if not (found and min(found) >= 0 and 0 < sum(found) < math.inf):
        raise ValueError(
            f"weights is {weights!r}; wanted finite numbers >= 0, one per map of features, not all 0."
        )
    return found


@checked
class DriftingLoss(nn.Module):
    r"""`drifting_loss` averaged over maps of features, per class, with guidance: the objective of drifting generators.

    Called as loss(x, pos, neg=None, guidance=1.0) with N generated samples x, P positives and M unconditional
    negatives, each vectors [n, D] or images [n, C, H, W]; or with classes [classes, n, ...], each with its own
    positives, and sets without that dimension shared by all. `guidance` is a strength >= 1 or one per class [classes],
    above 1 for a `PublishedField` only. Returns a `DriftingReport`; the gradient reaches x only.

    Each map [n, locations, F] is one term: its field compares samples location by location. With `PublishedField()` or
    `field.standardized()` its scale and its rms are means over all classes and locations of the map, as published
    (Deng et al. 2026; their loss is the sum over maps, this one the weighted mean). Half-precision features count in
    float32.

    Args:
        field: a field such as `EnergyField().standardized()`, or a function (x, pos) -> velocity, of features.
        features: functions or modules of samples without classes, [n, D] or [n, C, H, W], that return
            vectors [n, F], a map [n, locations, F], or a sequence of these; see `patch_features`. None:
            vectors as they are. Modules are registered but not trained here: freeze them; gradients
            pass through them to x.
        weights: one per map in the mean over them, in the order in which `features` return them; only ratios matter.
            None: equal.
        group: the processes that hold shares of one batch: every process passes the same numbers of samples of
            the same classes, and the field sees them all. The mean of the gradients over the processes,
            as in `DistributedDataParallel`, is then that of one process with the whole batch. Guidance and the
            generators of random fields must be the same on every process. None: this process alone;
            `torch.distributed.group.WORLD`: all.

    Raises:
        ValueError: on guidance with another field or without neg, on images without features, on numbers of classes
            that differ, on features with NaN, on weights that do not fit, on shares of unequal shape, and as the field
            does.
        RuntimeError: when `group` is given and no process group is initialised.
    """

    def __init__(
        self,
        field: Callable[..., Tensor] = PublishedField(),  # noqa: B008 - a frozen value
        *,
        features: Sequence[Callable[[Tensor], Tensor | Sequence[Tensor]]] | None = None,
        weights: Sequence[float] | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__()
        if features is not None and not isinstance(features, Sequence | nn.ModuleList):
            raise ValueError(
                f"features is {type(features).__name__}; wanted a list of networks or functions, such as "
                "features=[network]. (The layers of a Sequential would each be features of the points.)"
            )
        if features is not None and not features:
            raise ValueError(
                "features is empty; wanted maps [N, ...] -> [N, F], or None for the points."
            )
        maps = [nn.Identity()] if features is None else features
        self.features = nn.ModuleList(
            m if isinstance(m, nn.Module) else FeatureFunction(m) for m in maps
        )
        self.field, self.group = field, group
        self.weights = None if weights is None else _checked_weights(weights)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        guidance: float | Tensor = 1.0,
    ) -> DriftingReport:
        guided = isinstance(guidance, Tensor) or guidance != 1
        if guided and neg is None:
            raise ValueError(
                "guidance needs unconditional data; pass it as neg [M, ...] or [classes, M, ...]."
            )
        if guided and not isinstance(self.field, PublishedField):
            raise ValueError(
                f"guidance came with {self.field!r}; wanted a PublishedField. For another field, add the repulsion to "
                "it: lambda x, pos, neg: field(x, pos) + (strength - 1) * field(x, pos, neg=neg)."
            )
        terms = []
        for i, phi in enumerate(self.features):
            label = "{}" if isinstance(phi, nn.Identity) else f"features[{i}]({{}})"
            a = feature_maps(phi, x, label.format("x"))
            with torch.no_grad():
                b = feature_maps(phi, pos, label.format("pos"))
                c = [None] * len(a) if neg is None else feature_maps(phi, neg, label.format("neg"))
            names = [label.format(name) for name in ("x", "pos", "neg")]
            terms += [self._term(*m, guidance, names) for m in zip(a, b, c, strict=True)]
        weights = [1.0] * len(terms) if self.weights is None else self.weights
        if len(weights) != len(terms):
            raise ValueError(
                f"weights are {len(weights)} numbers, but the features are {len(terms)} maps; wanted one per map."
            )
        shares = [w / sum(weights) for w in weights]
        weighted = ([share * v for v in term] for share, term in zip(shares, terms, strict=True))
        return DriftingReport(*(torch.stack(t).sum() for t in zip(*weighted, strict=True)))

    def _term(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor | None,
        guidance: float | Tensor,
        names: list[str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The report of one map; x [classes, locations, N, F], pos and neg with classes or 1."""
        for name, other in zip(names[1:], (pos, neg), strict=True):
            if other is None:
                continue
            check_clouds(x[0], other[0], None, False, (names[0], name))
            if len(other) not in (1, len(x)) or other.shape[1] != x.shape[1]:
                raise ValueError(
                    f"{name} has (classes, locations) = {list(other.shape[:2])}, {names[0]} "
                    f"{list(x.shape[:2])}; wanted as many of both, or no dimension of classes."
                )
        own, (x_all, pos, neg) = self._union(x, pos, neg)
        weights = None
        if neg is not None and isinstance(self.field, PublishedField):
            strength = torch.as_tensor(guidance, dtype=neg.dtype, device=neg.device)
            if strength.numel() not in (1, len(x)):
                raise ValueError(
                    f"guidance is {list(strength.shape)} for {len(x)} classes; wanted one number, or one per class."
                )
            w = guidance_weight(strength, gen=x_all.shape[-2], neg=neg.shape[-2]).reshape(-1, 1, 1)  # type: ignore[union-attr]
            weights = w.expand(len(x), *neg.shape[1:-1]).flatten(0, 1)
        # One spread of the means over locations: that of every location would take as long as the field.
        spread = spread_ratio(x_all.mean(1), pos.mean(1).expand(len(x), -1, -1))
        sets = [None if t is None else t.expand(len(x), -1, -1, -1) for t in (x_all, pos, neg)]
        flat = [None if t is None else t.flatten(0, 1) for t in sets]
        V, unit, magnitude = _in_own_unit(*flat, weights, self.field)  # type: ignore[arg-type]
        return regress_onto(x.flatten(0, 1) / unit, V[..., own, :]), magnitude, spread

    def _union(
        self, x: Tensor, *others: Tensor | None
    ) -> tuple[slice, tuple[Tensor, Tensor, Tensor | None]]:
        """The samples of all processes, and which of x are those of this one."""
        sets = [None if t is None else t.detach() for t in (x, *others)]
        if self.group is None:
            return slice(None), tuple(sets)  # type: ignore[return-value]
        processes, n = Processes(self.group), x.shape[-2]
        shapes = [None if t is None else [*t.shape, str(t.dtype)] for t in sets]
        processes.agree({"the shapes or dtypes of their shares": shapes}, None, x.device)
        whole = [
            None
            if t is None
            else torch.cat(processes.all_gather(t.contiguous(), "gathering features"), -2)
            for t in sets
        ]
        return slice(processes.rank * n, (processes.rank + 1) * n), tuple(whole)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"field={self.field!r}{weights}"
