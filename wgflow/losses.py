r"""Losses for any generator: a field says where points should go, a regression with a stopped gradient takes
them there.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wgflow.balanced import balanced_field, balanced_scale

__all__ = ["drifting_loss", "regress_onto"]


def regress_onto(x: Tensor, velocity: Tensor) -> Tensor:
    r"""mean |x - sg(x + v)|² over all elements: its gradient at x is -2 v / numel, its value mean v².

    Args: x: any shape, the generator's output, with gradient; velocity: the same shape, detached here.
    Returns: a scalar, length². Gradient to x only. Raises: ValueError when the shapes differ.
    """
    if x.shape != velocity.shape:
        raise ValueError(
            f"velocity is {list(velocity.shape)} but x is {list(x.shape)}; wanted the same shape: one velocity a point."
        )
    # (x - sg x) - sg v rather than x - sg(x + v): the same number, without rounding v to the size of x.
    return ((x - x.detach()) - velocity.detach()).square().mean()


def drifting_loss(
    gen: Tensor,
    pos: Tensor,
    *,
    neg: Tensor | None = None,
    field: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    r"""The loss of drifting models: regress the generated points onto themselves moved by a field.

    Without `field` it is the released objective, `balanced_field` in its own coordinates x / (s / sqrt(D)):
    constant (1 with one temperature), so watch the field's size and `spread_ratio`, not this value.

    Args:
        gen: [..., G, D] generated points, with gradient; pos: [..., P, D] data; neg: [..., M, D] extra
            negatives or None.
        field: (gen, pos) -> [..., G, D], for instance `energy_field`; takes its own negatives, so not
            together with `neg`.
    Returns: a scalar: dimensionless without `field`, length² with one. Gradient to gen only, by regression.
    Raises: ValueError as the field does; neg together with field.
    """
    x, y = gen.detach(), pos.detach()
    if field is not None:
        if neg is not None:
            raise ValueError(
                "neg came with field, which takes its own negatives: field=lambda x, y: energy_field(x, y, neg)."
            )
        return regress_onto(gen, field(x, y))
    unit = balanced_scale(x, y, neg=neg).clamp_min(1e-30)
    return regress_onto(gen / unit, balanced_field(x, y, neg=neg) / unit)
