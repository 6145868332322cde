r"""A memory of data samples by class, for batches with many positives of each label that is generated."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wgflow.arguments import checked, draw_device

__all__ = ["SampleQueue"]


@checked
class SampleQueue(nn.Module):
    """The last `size` samples of each class, in a ring buffer that moves and is saved with its module.

    Args:
        dim: D, the dimension of a sample; C H W for images, stored as rows: `images.flatten(1)`.
        size: how many samples are kept per class.
        classes: how many labels there are; 1 for unconditional data.
    """

    samples: Tensor  # [classes, size, D]
    pushed: Tensor  # [classes], how many samples each class ever received

    def __init__(self, dim: int, *, size: int, classes: int = 1):
        super().__init__()
        if dim < 1 or size < 1 or classes < 1:
            raise ValueError(
                f"dim = {dim}, size = {size}, classes = {classes}; wanted at least one of each."
            )
        self.dim, self.size, self.classes = dim, size, classes
        self.register_buffer("samples", torch.zeros(classes, size, dim))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.long))

    def __len__(self) -> int:
        """The number of samples held, over all classes."""
        return int(self.pushed.clamp_max(self.size).sum())

    def extra_repr(self) -> str:
        return f"{self.dim}, size={self.size}, classes={self.classes}, held={len(self)}"

    @torch.no_grad()
    def push(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Store samples, dropping the oldest of their class.

        Args:
            samples: [N, D]; converted to the dtype and device of the queue.
            labels: [N], or None where there is one class.

        Raises:
            ValueError: on shapes or labels that do not fit.
        """
        if samples.dim() != 2 or samples.shape[-1] != self.dim:
            raise ValueError(
                f"samples are {list(samples.shape)}; wanted [N, {self.dim}].{self._remedy(samples)}"
            )
        labels = self._labels(labels, len(samples))
        for c in labels.unique().tolist():
            new = samples[labels.to(samples.device) == c][-self.size :].to(self.samples)
            at = (self.pushed[c] + torch.arange(len(new), device=self.pushed.device)) % self.size
            self.samples[c, at] = new
            self.pushed[c] += len(new)

    def draw(
        self, n: int, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n samples of each label, with replacement.

        Args:
            n: samples per label.
            labels: [C], or None where there is one class.
            generator: of the draws; None: torch's default generator of the CPU.

        Returns:
            [C, n, D], or [n, D] without labels.

        Raises:
            ValueError: when nothing was pushed for a label.
        """
        wanted = self._labels(labels)
        held = self.pushed.clamp_max(self.size).cpu()
        if bool((held[wanted] == 0).any()):
            empty = wanted[held[wanted] == 0].unique().tolist()
            raise ValueError(
                f"nothing was pushed yet for labels {empty}; push data of every label before drawing it."
            )
        device = draw_device(generator, torch.device("cpu"))
        like = {"generator": generator, "device": device, "dtype": torch.float32}
        uniform = torch.rand(len(wanted), n, **like).cpu()  # half precision would skip samples
        pick = (uniform * held[wanted, None]).long()
        device = self.samples.device
        drawn = self.samples[wanted.to(device)[:, None], pick.to(device)]
        return drawn[0] if labels is None else drawn

    def _remedy(self, samples: Tensor) -> str:
        """Return a way out for samples of a wrong shape, one that mixes no two samples."""
        shape = tuple(samples.shape)
        if len(shape) > 2 and math.prod(shape[1:]) == self.dim:
            return f" One row per image: samples.flatten(1), and drawn.unflatten(-1, {shape[1:]})."
        if len(shape) == 3 and shape[-1] == self.dim:
            return " Flatten the leading dimensions: samples.flatten(0, -2)."
        if len(shape) > 2:
            size = math.prod(shape[1:])
            return f" For images, SampleQueue({size}, ...) holds samples.flatten(1)."
        return ""

    def _labels(self, labels: Tensor | None, n: int | None = None) -> Tensor:
        if labels is None:
            if self.classes > 1:
                raise ValueError(
                    f"labels are missing for a queue of {self.classes} classes; pass them [N]."
                )
            return torch.zeros(1 if n is None else n, dtype=torch.long, device="cpu")
        if n is not None and len(labels) != n:
            raise ValueError(
                f"labels are {list(labels.shape)} for {n} samples; wanted one label for each."
            )
        labels = labels.long().cpu()
        if labels.numel() and not (labels.min() >= 0 and labels.max() < self.classes):
            raise ValueError(
                f"labels go from {labels.min()} to {labels.max()}; wanted 0 to {self.classes - 1}."
            )
        return labels
