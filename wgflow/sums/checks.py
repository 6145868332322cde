r"""What clouds and weights may be: errors that name the argument, what came, what was wanted, and a way out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wgflow.sums import sharding

_unread = False  # a plain variable: torch.compile cannot look into a ContextVar


@contextlib.contextmanager
def capturable() -> Iterator[None]:
    """Inside, no value is read, as while a CUDA graph is captured: a call before it makes the operations it records.

    Checks of values are then not made, and sums whose backend depends on values take the one that is always right.
    """
    global _unread
    before, _unread = _unread, True
    try:
        yield
    finally:
        _unread = before


def readable(*tensors: Tensor | None) -> bool:
    """Whether values can be looked at: not while torch compiles or maps a function, or captures a CUDA graph.

    There is no number then, or no way to wait for it. What a check would have refused comes out as NaN.
    """
    if _unread or torch.compiler.is_compiling():
        return False
    given = [t for t in tensors if t is not None]
    if any(_mapped(t) for t in given):
        return False
    return not (any(t.is_cuda for t in given) and torch.cuda.is_current_stream_capturing())


def _mapped(t: Tensor) -> bool:
    """Whether this tensor stands for many under `torch.func.vmap`, whatever transforms lie over it."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]  # no public name asks this
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return True
        t = functorch.get_unwrapped(t)
    return False


def log_of_weights(weights: Tensor | None) -> Tensor | None:
    """Masses w >= 0 -> the log weights of the sums; None stays None. Raises: ValueError on a negative mass or NaN."""
    if weights is None:
        return None
    if readable(weights) and not bool((weights.detach() >= 0).all()):
        raise ValueError(
            "weights hold a negative number or NaN; they are masses, w >= 0. From logits, use logits.softmax(-1)."
        )
    return weights.log()


def broadcast(*leads: tuple[int, ...]) -> tuple[int, ...]:
    """`torch.broadcast_shapes`, which takes as long as a small sum, where there is something to decide."""
    first, *others = leads
    return first if all(lead in ((), first) for lead in others) else torch.broadcast_shapes(*leads)


def check_clouds(
    x: Tensor, y: Tensor, log_weights: Tensor | None, skip_self: bool, names=("x", "y")
) -> None:
    """Refuse clouds that cannot be averaged, naming the argument and a way out. Raises: ValueError.

    One shard of a cloud may be empty, or without weight: only the union may not.
    """
    (a, b), whole = names, sharding.current() is None
    if x.dim() < 2 or y.dim() < 2:
        raise ValueError(
            f"{a} is {list(x.shape)} and {b} is {list(y.shape)}; both must be [..., n, D]. One point is t[None]."
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{b} has dimension {y.shape[-1]} but {a} has {x.shape[-1]}; both must be [..., n, D]. "
            "For sequences, flatten time into D first: t.flatten(-2)."
        )
    leads = {
        a: x.shape[:-2],
        b: y.shape[:-2],
        "the weights": () if log_weights is None else log_weights.shape[:-1],
    }
    try:
        broadcast(*leads.values())
    except RuntimeError:
        said = " and ".join(f"{list(lead)} of {name}" for name, lead in leads.items() if lead)
        raise ValueError(
            f"the leading dimensions {said} do not broadcast; wanted equal ones, or ones of size 1."
        ) from None
    if x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(
            f"{a} is {x.dtype} and {b} is {y.dtype}; both must share one floating dtype: {b}.to({a})."
        )
    if x.device != y.device:
        raise ValueError(
            f"{a} is on {x.device} and {b} on {y.device}; move one: {b}.to({a}.device)."
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
    if log_weights is not None:
        if (
            log_weights.shape[-1:] != y.shape[-2:-1]
            or log_weights.dtype not in (y.dtype, torch.float64)
            or log_weights.device != y.device
        ):
            raise ValueError(
                f"the weights are {list(log_weights.shape)} {log_weights.dtype} on {log_weights.device}; "
                f"wanted [..., {y.shape[-2]}] {y.dtype} on {y.device}, one for each point of {b}."
            )
        seen = whole and readable(log_weights)  # a shard may be empty
        if seen and not bool((log_weights.detach().amax(-1) > -math.inf).all()):
            raise ValueError(
                f"all weights of {b} are zero (or NaN) in some batch element; weigh one of them, or leave the term out."
            )


def refuse_nan(result: Tensor, names: str) -> None:
    """Refuse a result that holds NaN, on the CPU: on a GPU this would make every call wait. Raises: ValueError."""
    if result.device.type == "cpu" and readable(result) and bool(result.isnan().any()):
        raise ValueError(
            f"{names} holds NaN (or infinity), so the average is not a number; "
            "find the batch with torch.isfinite(t).all()."
        )
