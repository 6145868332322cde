r"""Bandwidths per dimension or per batch element: another kernel, read in coordinates divided by lengths.

A bandwidth stays one number and a kernel a small value; what varies is where the kernel is read. The losing side,
`Gaussian(h)` with h a tuple or a tensor, would have put shapes into every formula of every kernel and backend. The sums
divide x and y by the lengths at their door and multiply the shift by them on the way out, so no backend knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wgflow.arguments import checked_constructor
from wgflow.kernels import Kernel

__all__ = ["Stretched", "unstretch"]


@checked_constructor
@dataclass(frozen=True, eq=False)
class Stretched(Kernel):
    r"""k(x / lengths, y / lengths): with `Gaussian(h)` inside, the bandwidth along dimension d is h lengths_d.

    The mean shift is H = diag(c lengths²) times what it was: V = H (∇log p_h - ∇log q_h), c = h² for the Gaussian.

    Args:
        kernel: what is stretched. lengths: [D], one a dimension; [..., 1, D], also one a batch element; or [..., 1, 1],
            one a batch element. Positive; a tensor or a sequence of numbers. The products h lengths are lengths in the
            units of x, so lengths of standard deviations go with a dimensionless h.
    Gradients flow to the lengths too. Raises: ValueError on lengths that are not positive, or one for each point.
    """

    kernel: Kernel
    lengths: Tensor

    def __init__(self, kernel: Kernel, lengths: Tensor | Sequence[float] | float):
        if not isinstance(lengths, Tensor) or not lengths.is_floating_point():
            lengths = torch.as_tensor(lengths, dtype=torch.float64)
        if lengths.dim() == 0:
            lengths = lengths[None]
        if lengths.dim() > 1 and lengths.shape[-2] != 1:
            raise ValueError(
                f"lengths are {list(lengths.shape)}; wanted [D], [..., 1, D] or [..., 1, 1]: the same for all points "
                "of a cloud. For one a batch element, lengths[..., None, None]."
            )
        if not bool(((lengths > 0) & lengths.isfinite()).all()):
            raise ValueError(
                "lengths hold a number that is not positive and finite, so no bandwidth; a dimension without spread "
                "wants a length chosen by hand: lengths.clamp_min(...)."
            )
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "lengths", lengths)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stretched):
            return NotImplemented
        return self.kernel == other.kernel and torch.equal(self.lengths, other.lengths)

    def __hash__(self) -> int:
        return hash((self.kernel, self.lengths.shape))

    def log(self, sq: Tensor) -> Tensor:
        """log k at squared distances between *divided* points (dimensionless); `log_pairs` takes the points."""
        return self.kernel.log(sq)

    def log_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        kernel, x, y, _ = unstretch(self, x, y)
        return kernel.log_pairs(x, y)

    def log_norm(self, dim: int) -> Tensor | None:
        """A tensor, [1] or [..., 1] beside a log mass [..., N]: the inner constant less Σ log lengths."""
        inner = self.kernel.log_norm(dim)
        return (
            None
            if inner is None
            else inner - self.lengths.expand(*self.lengths.shape[:-1], dim).log().sum(-1)
        )

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        _check_dimension(self.lengths, like)
        return self.kernel.noise(like, generator) * self.lengths.detach().to(like)

    def covector(self, shift: Tensor) -> Tensor:
        return self.kernel.covector(shift) / self.lengths.to(shift.device).square()

    @cached_property
    def slope(self) -> Kernel:  # type: ignore[override]
        return Stretched(self.kernel.slope, self.lengths)

    @property
    def shadow(self) -> Kernel | None:
        inner = self.kernel.shadow
        return None if inner is None else Stretched(inner, self.lengths)

    @property
    def shadow_scale(self) -> float:
        """The inner c, dimensionless here: the mean shift is c lengths² (f_H / f_k) ∇log f_H."""
        return self.kernel.shadow_scale


def unstretch(kernel: Stretched, x: Tensor, y: Tensor) -> tuple[Kernel, Tensor, Tensor, Tensor]:
    """(inner kernel, x / lengths, y / lengths, lengths), all in float64; the inner kernel is no stretched one.

    A shift between the divided points, times the lengths, is the shift between the points.
    Raises: ValueError on lengths of another dimension or device than x.
    """
    lengths = kernel.lengths
    _check_dimension(lengths, x)
    if lengths.device != x.device:
        raise ValueError(
            f"lengths are on {lengths.device} and x on {x.device}; move one: lengths.to(x.device)."
        )
    lengths = lengths.double()
    # float64 whatever x is: the quotient of two float32 numbers would round away digits that the sums keep.
    u, v = x.double() / lengths, y.double() / lengths
    if not isinstance(kernel.kernel, Stretched):
        return kernel.kernel, u, v, lengths
    plain, u, v, inner = unstretch(kernel.kernel, u, v)
    return plain, u, v, lengths * inner


def _check_dimension(lengths: Tensor, x: Tensor) -> None:
    if lengths.shape[-1] not in (1, x.shape[-1]):
        raise ValueError(
            f"lengths are {list(lengths.shape)} but x has dimension {x.shape[-1]}; wanted one length for each "
            "dimension, or a last dimension of 1 for all."
        )
