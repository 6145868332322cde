r"""Validate clouds and weights: errors name the argument, what came, what was wanted, and a way out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wgflow.arguments import checkable
from wgflow.reductions import sharding


def check_weights(weights: Tensor | None) -> None:
    """Refuse weights that are no masses. Raises: ValueError on a negative weight or NaN."""
    if weights is not None and checkable(weights) and not bool((weights.detach() >= 0).all()):
        raise ValueError(
            "weights hold a negative number or NaN; they are masses, w >= 0. From logits, use logits.softmax(-1)."
        )


def broadcast(*leads: tuple[int, ...]) -> tuple[int, ...]:
    """`torch.broadcast_shapes`, skipped where all shapes are equal: it takes as long as a small sum."""
    first, *others = leads
    return first if all(lead in ((), first) for lead in others) else torch.broadcast_shapes(*leads)


def refuse_images(t: Tensor, name: str) -> None:
    """Refuse images: [..., n, n] with two or more leading dimensions and n >= 8. Raises: ValueError.

    Read as [..., n, D], images [B, C, n, n] would be B C clouds of n rows each. Batches of batches of
    clouds have this shape only if n points lie in n dimensions, too few for any estimate; such clouds
    can be passed with one leading dimension.
    """
    if t.dim() >= 4 and t.shape[-1] == t.shape[-2] >= 8:
        raise ValueError(
            f"{name} is {list(t.shape)}, the shape of images; wanted points [..., n, D]. One point per "
            f"image: {name}.flatten(-3), or feature vectors, e.g. DriftingLoss(features=[network]). If "
            f"these are clouds of {t.shape[-2]} points, pass one leading dimension: "
            f"{name}.flatten(0, -3)."
        )


def check_clouds(
    x: Tensor,
    y: Tensor,
    log_weights: Tensor | None,
    skip_self: bool,
    names=("x", "y"),
    weights: Tensor | None = None,
) -> None:
    """Refuse clouds that cannot be averaged, with `log_weights`, `weights`, both or none. Raises: ValueError.

    A shard of a cloud may be empty or without weight; the union of all shards may not.
    """
    (a, b), whole = names, sharding.current() is None
    given = [w for w in (log_weights, weights) if w is not None]
    check_weights(weights)
    if x.dim() < 2 or y.dim() < 2:
        raise ValueError(
            f"{a} is {list(x.shape)} and {b} is {list(y.shape)}; both must be [..., n, D]. "
            "One point is t[None], numbers are points t[:, None]."
        )
    refuse_images(x, a)
    refuse_images(y, b)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{b} has dimension {y.shape[-1]} but {a} has {x.shape[-1]}; both must be [..., n, D]. "
            "For sequences, flatten time into D first: t.flatten(-2)."
        )
    leads = [(a, x.shape[:-2]), (b, y.shape[:-2]), *(("the weights", w.shape[:-1]) for w in given)]
    try:
        broadcast(*(lead for _, lead in leads))
    except RuntimeError:
        said = " and ".join(f"{list(lead)} of {name}" for name, lead in leads if lead)
        raise ValueError(
            f"the leading dimensions {said} do not broadcast; wanted equal ones, or ones of size 1."
        ) from None
    if x.dtype != y.dtype or not x.is_floating_point():
        remedy = f"{b}.to({a})" if x.is_floating_point() else f"{a}.float()"
        raise ValueError(
            f"{a} is {x.dtype} and {b} is {y.dtype}; both must share one floating dtype: {remedy}."
        )
    if x.device != y.device:
        raise ValueError(
            f"{a} is on {x.device} and {b} on {y.device}; move one: {b}.to({a}.device)."
        )
    if x.device.type == "mps":
        raise ValueError(
            f"{a} is on {x.device}, and MPS has no float64, in which all sums end; move it to the CPU: {a}.cpu()."
        )
    if whole and y.shape[-2] == 0:
        raise ValueError(
            f"{b} is empty ({list(y.shape)}): there is nothing to average. Leave the term out instead."
        )
    if skip_self:
        if x.shape[-2] != y.shape[-2]:
            raise ValueError(
                f"skip_self=True pairs {a}[i] with {b}[i], but there are {x.shape[-2]} and {y.shape[-2]} points; "
                f"pass the same cloud as both, or skip_self=False."
            )
        if whole and y.shape[-2] == 1:
            raise ValueError(
                "skip_self=True leaves nothing of a cloud of one point; draw at least two, or skip_self=False."
            )
    for w in given:
        if (
            w.shape[-1:] != y.shape[-2:-1]
            or w.dtype not in (y.dtype, torch.float64)
            or w.device != y.device
        ):
            raise ValueError(
                f"the weights are {list(w.shape)} {w.dtype} on {w.device}; "
                f"wanted [..., {y.shape[-2]}] {y.dtype} on {y.device}, one for each point of {b}."
            )
        nothing = 0.0 if w is weights else -math.inf
        if whole and checkable(w) and not bool((w.detach().amax(-1) > nothing).all()):
            raise ValueError(
                f"all weights of {b} are zero (or NaN) in some batch element; weigh one of them, or leave the term out."
            )


def check_no_nan(result: Tensor, names: str) -> None:
    """Refuse a result that holds NaN. On the CPU only: on a GPU every call would wait. Raises: ValueError."""
    # One sum in place of a mask of all elements: it is NaN if one of them is.
    if checkable(result) and math.isnan(float(result.detach().sum())):
        raise ValueError(
            f"{names} holds NaN (or infinity), so the average is not a number; "
            "find the batch with torch.isfinite(t).all()."
        )
