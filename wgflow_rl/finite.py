"""Training that diverges ends with the name of what is not finite, and the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """A loss or a weight stopped being finite."""


def check_finite(tensors: Mapping[str, Tensor], *, at: str) -> None:
    """Raises: TrainingDiverged naming the first that is not finite; `at` is the moment, as "step 7 (offline)"."""
    # A sum is finite only if every entry is: ten times faster than asking each, and one answer for a GPU to give.
    if torch.stack([tensor.sum().float() for tensor in tensors.values()]).isfinite().all():
        return
    name = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if name is None:  # the sum of entries so large
        return
    hint = "see where it comes from" if name.startswith("batch.") else "a new run with a smaller --lr"
    raise TrainingDiverged(
        f"{name} is not finite at {at}. Checkpoints are from before it; what usually helps: {hint}."
    )


@contextlib.contextmanager
def refusals_are_divergence(
    of: str, weights: Callable[[], Mapping[str, Tensor]], *, at: str
) -> Iterator[None]:
    """A field refuses NaN: with a finite batch, it is the weights that have it. `of`: what the field is one of."""
    try:
        yield
    except ValueError as error:
        check_finite(weights(), at=at)
        if "NaN" not in str(error):
            raise
        # Finite weights, so large that what they make is not.
        raise TrainingDiverged(
            f"a field of the {of} is not finite at {at}. Checkpoints are from before it; what usually helps: a new "
            "run with a smaller --lr."
        ) from error


def gradients(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The gradients of the last update, as 'gradient of policy.net.first.weight'."""
    return {
        f"gradient of {name}.{key}": weight.grad
        for name, module in modules.items()
        for key, weight in module.named_parameters()
        if weight.grad is not None
    }
