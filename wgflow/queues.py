r"""A memory of data samples by class, for batches with many positives of each label that is generated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wgflow.arguments import checked, draw_device

__all__ = ["SampleQueue"]


@checked
class SampleQueue(nn.Module):
    """The last `size` samples of each class, in a ring buffer that moves and is saved with its module.

    Images are best held as torch.uint8 on the host, outside the network: `queue.draw(...).to(device) / 127.5 - 1`.

    Args:
        shape: of a sample: D for vectors, (C, H, W) for images.
        size: how many samples are kept per class.
        classes: how many labels there are; 1 for unconditional data.
        dtype: of the samples held. torch.uint8 takes uint8 samples only; floating types convert.
    """

    samples: Tensor  # [classes, size, *shape]
    pushed: Tensor  # [classes], how many samples each class ever received

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        size: int,
        classes: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if min(self.shape, default=0) < 1 or size < 1 or classes < 1:
            raise ValueError(
                f"shape = {shape}, size = {size}, classes = {classes}; wanted at least one of each."
            )
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise ValueError(f"dtype = {dtype}; wanted torch.uint8 or a floating type.")
        self.size, self.classes = size, classes
        self.register_buffer("samples", torch.zeros(classes, size, *self.shape, dtype=dtype))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.long))

    def __len__(self) -> int:
        """The number of samples held, over all classes."""
        return int(self.pushed.clamp_max(self.size).sum())

    def extra_repr(self) -> str:
        shape = self.shape[0] if len(self.shape) == 1 else self.shape
        return f"{shape}, size={self.size}, classes={self.classes}, held={len(self)}"

    @torch.no_grad()
    def push(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Store samples, dropping the oldest of their class.

        Args:
            samples: `[N, *shape]`; moved to the device of the queue.
            labels: [N], or None where there is one class.

        Raises:
            ValueError: on shapes, labels or a dtype that do not fit, on NaN or infinity.
        """
        if samples.dim() != 1 + len(self.shape) or samples.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"samples are {list(samples.shape)}; wanted [N, {wanted}].{self._remedy(samples)}"
            )
        self._check_values(samples)
        labels = self._labels(labels, len(samples)).to(self.pushed.device)
        order = labels.argsort(stable=True)
        count = labels.bincount(minlength=self.classes)
        labels = labels[order]
        rank = torch.arange(len(labels), device=labels.device) - (count.cumsum(0) - count)[labels]
        last = rank >= count[labels] - self.size  # more than fit: the newest stay
        at = (self.pushed[labels] + rank) % self.size
        new = samples[order.to(samples.device)[last.to(samples.device)]]
        self.samples[labels[last], at[last]] = new.to(self.samples)
        self.pushed += count

    def draw(
        self, n: int, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n different samples of each label.

        Args:
            n: samples per label.
            labels: [C], or None where there is one class.
            generator: of the draws; None: torch's default generator of the CPU.

        Returns:
            `[C, n, *shape]`, or `[n, *shape]` without labels.

        Raises:
            ValueError: when fewer than n samples of a label are held.
        """
        if n < 0:
            raise ValueError(f"n = {n}; wanted a number of samples, 0 or more.")
        wanted = self._labels(labels)
        held = self.pushed.clamp_max(self.size).cpu()[wanted]
        if bool((held < n).any()):
            few = wanted[held < n].unique().tolist()
            raise ValueError(
                f"n = {n} samples were asked for, but labels {few} hold {int(held.min())} at the least, of size = "
                f"{self.size}; push more data of every label first, or draw fewer."
            )
        device = draw_device(generator, torch.device("cpu"))
        like = {"generator": generator, "device": device, "dtype": torch.float32}
        key = torch.rand(len(wanted), self.size, **like).cpu()  # half precision would have ties
        key[torch.arange(self.size, device="cpu") >= held[:, None]] = math.inf
        pick = key.topk(n, largest=False).indices
        device = self.samples.device
        drawn = self.samples[wanted.to(device)[:, None], pick.to(device)]
        return drawn[0] if labels is None else drawn

    def _check_values(self, samples: Tensor) -> None:
        dtype = self.samples.dtype
        if (samples.dtype == torch.uint8) != (dtype == torch.uint8):
            remedy = (
                "of images in [0, 1]: (255 * images).round().to(torch.uint8)"
                if dtype == torch.uint8
                else "images / 127.5 - 1, or a queue with dtype=torch.uint8"
            )
            raise ValueError(f"samples are {samples.dtype}, the queue {dtype}; pass {remedy}.")
        if not bool(samples.to(dtype).isfinite().all()):
            raise ValueError(
                f"samples hold NaN or infinity, or numbers beyond {dtype}; drop them before the queue."
            )

    def _remedy(self, samples: Tensor) -> str:
        """Return a way out for samples of a wrong shape, one that mixes no two samples."""
        shape = tuple(samples.shape)
        if len(shape) == 2 + len(self.shape) and shape[2:] == self.shape:
            return " Flatten the leading dimensions: samples.flatten(0, 1)."
        if len(shape) > 2:
            return f" For these, SampleQueue({shape[1:]}, ...)."
        return ""

    def _labels(self, labels: Tensor | None, n: int | None = None) -> Tensor:
        if labels is None:
            if self.classes > 1:
                raise ValueError(
                    f"labels are missing for a queue of {self.classes} classes; pass them [N]."
                )
            return torch.zeros(1 if n is None else n, dtype=torch.long, device="cpu")
        if labels.dim() != 1 or labels.is_floating_point() or (n is not None and len(labels) != n):
            raise ValueError(
                f"labels are {list(labels.shape)} {labels.dtype}"
                + ("" if n is None else f" for {n} samples")
                + "; wanted one integer for each, [N]."
            )
        labels = labels.long().cpu()
        if labels.numel() and not (labels.min() >= 0 and labels.max() < self.classes):
            raise ValueError(
                f"labels go from {labels.min()} to {labels.max()}; wanted 0 to {self.classes - 1}."
            )
        return labels
