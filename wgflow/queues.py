r"""A memory of data samples by class, so that a batch can have many positives of each label it generates."""

from __future__ import annotations

import torch
from torch import Tensor

from wgflow.arguments import checked

__all__ = ["SampleQueue"]


@checked
class SampleQueue:
    """The last `size` samples of each of `classes` labels (one class: unconditional). Samples are stored detached, [D].

    Everything is allocated at the first `push`; `state_dict` and `load_state_dict` make a resumed run exact.
    """

    def __init__(self, *, size: int, classes: int = 1):
        if size < 1 or classes < 1:
            raise ValueError(f"size = {size}, classes = {classes}; wanted at least one of each.")
        self.size, self.classes = size, classes
        self._samples: Tensor | None = None  # [classes, size, D]
        self._pushed = torch.zeros(classes, dtype=torch.long)  # how many each class ever received

    def __len__(self) -> int:
        """How many samples are held, over all classes."""
        return int(self._pushed.clamp_max(self.size).sum())

    def push(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Store samples [N, D] under labels [N] (None: one class), dropping the oldest. Raises: ValueError on a
        label.
        """
        if samples.dim() != 2 or (
            self._samples is not None and samples.shape[-1] != self._samples.shape[-1]
        ):
            wanted = (
                "[N, D]"
                if self._samples is None
                else f"[N, {self._samples.shape[-1]}], as pushed before"
            )
            raise ValueError(
                f"samples are {list(samples.shape)}; wanted {wanted}. Flatten a batch: t.flatten(0, -2)."
            )
        labels = self._labels(len(samples), labels)
        if self._samples is None:
            self._samples = samples.new_zeros(self.classes, self.size, samples.shape[-1])
        for c in labels.unique().tolist():
            new = samples.detach()[labels.to(samples.device) == c][-self.size :]
            at = (self._pushed[c] + torch.arange(len(new))) % self.size
            self._samples[c, at.to(samples.device)] = new
            self._pushed[c] += len(new)

    def draw(
        self, n: int, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n samples, with replacement, for each of the labels [C] -> [C, n, D] (None: [n, D] of the one class).

        Raises: ValueError when a label has received nothing yet.
        """
        wanted = self._labels(1, labels)
        held = self._pushed.clamp_max(self.size)
        if self._samples is None or bool((held[wanted] == 0).any()):
            empty = wanted[held[wanted] == 0].unique().tolist()
            raise ValueError(
                f"nothing was pushed yet for labels {empty}; push data of every label before drawing it."
            )
        pick = (torch.rand(len(wanted), n, generator=generator) * held[wanted, None]).long()
        drawn = self._samples[
            wanted.to(self._samples.device)[:, None], pick.to(self._samples.device)
        ]
        return drawn[0] if labels is None else drawn

    def _labels(self, n: int, labels: Tensor | None) -> Tensor:
        if labels is None:
            if self.classes > 1:
                raise ValueError(
                    f"labels are missing for a queue of {self.classes} classes; pass them [N]."
                )
            return torch.zeros(n, dtype=torch.long)
        if len(labels) != n and n != 1:
            raise ValueError(
                f"labels are {list(labels.shape)} for {n} samples; wanted one label for each."
            )
        labels = labels.long().cpu()
        if labels.numel() and not (labels.min() >= 0 and labels.max() < self.classes):
            raise ValueError(
                f"labels go from {labels.min()} to {labels.max()}; wanted 0 to {self.classes - 1}."
            )
        return labels

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only: what a checkpoint stores."""
        return {"pushed": self._pushed.clone()} | (
            {} if self._samples is None else {"samples": self._samples.clone()}
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self._pushed = state["pushed"].clone()
        self._samples = state["samples"].clone() if "samples" in state else None
