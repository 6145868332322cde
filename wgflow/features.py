r"""Features of samples as maps [n, locations, F], and statistics of patches of convolutional activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from wgflow.arguments import checked, widened
from wgflow.reductions import check_no_nan

__all__ = ["patch_features"]


@checked
def patch_features(
    activation: Tensor, *, patches: Sequence[int] = (2, 4), locations: bool = True
) -> list[Tensor]:
    r"""Split a convolutional activation into the maps of drifting models (Deng et al. 2026, A.5): its vectors at every
    location, the mean and the standard deviation over each patch of a grid, and those over all locations.

    Args:
        activation: [n, C, H, W].
        patches: side lengths of the patches; the grid covers what fits into H and W. Empty for global statistics alone.
        locations: include the vectors at every location.

    Returns:
        Maps [n, locations, C], for `DriftingLoss(features=)`, in float32 for half precision. Standard deviations are
        sqrt(variance + 1e-6).

    Raises:
        ValueError: when the activation is not [n, C, H, W], or a patch is larger than it.
    """
    if activation.dim() != 4 or max((1, *patches)) > min(activation.shape[-2:]):
        raise ValueError(
            f"activation is {list(activation.shape)} with patches {tuple(patches)}; wanted [n, C, H, W], H and W "
            "not below a patch."
        )
    activation = widened(activation)
    sizes = [(side, side) for side in patches] + [tuple(activation.shape[-2:])]
    # The mean is subtracted before squaring: E a² - (E a)² would lose the digits of small deviations.
    origin = activation.detach().mean((-2, -1), keepdim=True)
    maps = [activation] if locations else []
    for size in sizes:
        mean = avg_pool2d(activation - origin, size)
        variance = avg_pool2d((activation - origin).square(), size) - mean.square()
        maps += [mean + origin, (variance.clamp_min(0) + 1e-6).sqrt()]
    return [m.flatten(2).mT for m in maps]


def feature_maps(phi: nn.Module, t: Tensor, name: str) -> list[Tensor]:
    """The maps of features of samples, [classes, locations, n, F] each, in float32 at least.

    Raises: ValueError on what is neither vectors nor a map per sample, on NaN.
    """
    grouped = t.dim() in (3, 5)  # [classes, n, D] or [classes, n, C, H, W]
    found = phi(t.flatten(0, 1) if grouped else t)
    maps = []
    for f in [found] if isinstance(found, Tensor) else found:
        if f.dim() > 3:
            raise ValueError(
                f"{name} is {list(f.shape)}; wanted points [n, D] or [classes, n, D]. Images need "
                "feature vectors: DriftingLoss(features=[network]) with a network that returns [n, F] or "
                "[n, locations, F], or features=[lambda t: t.flatten(1)] for their pixels."
            )
        if f.dim() < 2:
            raise ValueError(f"{name} is {list(f.shape)}; wanted [n, D], one row per sample.")
        f = widened(f)
        check_no_nan((f - f).detach(), name)  # infinity becomes NaN too
        f = f.unflatten(0, t.shape[:2] if grouped else (1, len(f)))  # [classes, n, (locations,) F]
        maps.append(f.unsqueeze(1) if f.dim() == 3 else f.transpose(1, 2))
    return maps


class FeatureFunction(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor | Sequence[Tensor]]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        return self.function(x)
