r"""Encoders whose activations are the features of `wgflow.DriftingLoss`, trained on the images at hand.

A classifier where there are labels, a masked autoencoder (He et al. 2022; as features of drifting, Deng et al. 2026)
where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from image_data import to_float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

import wgflow as wg

HIDDEN = 128


class Encoder(nn.Module):
    """A classifier of images [n, channels, size, size]: convolutions that halve the side, a dense layer, a head."""

    def __init__(self, channels: int = 1, size: int = 28, widths: tuple[int, ...] = (32, 64)):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 4, 2, 1), nn.GELU())
            for i, o in pairwise((channels, *widths))
        )
        self.grid = (widths[-1], size >> len(widths), size >> len(widths))
        cells = torch.Size(self.grid).numel()
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(cells, HIDDEN), nn.GELU())
        self.head = nn.Linear(HIDDEN, 10)

    def activations(self, images: Tensor) -> list[Tensor]:
        """The outputs of all stages [n, F, H, W], and of the dense layer [n, F]."""
        found = [images]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return [*found[1:], self.dense(found[-1])]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.activations(images)[-1])

    def features(self, images: Tensor, logits: bool = True) -> list[Tensor]:
        """Maps [n, locations, F]: pixels, activations pooled to the last grid and their statistics, the dense layer,
        and the logits of the classes, if wanted."""
        *maps, dense = self.activations(images)
        coarse = [avg_pool2d(m, m.shape[-1] // self.grid[-1]) for m in maps]
        local = [m for c in coarse for m in wg.patch_features(c, patches=())]
        return [images.flatten(1), *local, dense, *([self.head(dense)] if logits else [])]

    def weights(self, logits: float) -> list[float]:
        """The weights of these maps in the loss: 1, and `logits` for the last."""
        return [1.0] * (2 + 3 * len(self.stages)) + ([logits] if logits else [])


class Decoder(nn.Module):
    """Images from the dense layer of an encoder and its last stage."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        convolutions = [stage[0] for stage in encoder.stages]
        self.grid = encoder.grid
        self.enter = nn.Linear(HIDDEN, torch.Size(self.grid).numel())
        layers: list[nn.Module] = []
        for conv in reversed(convolutions):
            layers += [
                nn.GELU(),
                nn.ConvTranspose2d(conv.out_channels, conv.in_channels, 4, 2, 1),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, last: Tensor, dense: Tensor) -> Tensor:
        return self.body(last + self.enter(dense).unflatten(1, self.grid))


def train_classifier(encoder: Encoder, images: Tensor, labels: Tensor, steps: int) -> None:
    """Train the encoder and its head on noisy, shifted images."""

    def loss(x: Tensor, pick: Tensor) -> Tensor:
        x = x.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (-2, -1))
        return cross_entropy(encoder(x + 0.3 * torch.randn_like(x)), labels[pick])

    fit(encoder, images, loss, steps)


def train_masked(encoder: Encoder, images: Tensor, steps: int, patch: int = 4) -> None:
    """Train all but the head to restore the hidden half of the patches; labels are not used."""
    decoder = Decoder(encoder).to(images.device)

    def loss(x: Tensor, _: Tensor) -> Tensor:
        cells = torch.rand(len(x), 1, *(side // patch for side in x.shape[-2:]), device=x.device)
        hidden = interpolate((cells < 0.5).float(), x.shape[-2:])
        *_, last, dense = encoder.activations(x * (1 - hidden))
        error = (decoder(last, dense) - x).square() * hidden
        return error.sum() / (hidden.sum() * x.shape[1]).clamp_min(1)

    fit(nn.ModuleList([encoder, decoder]), images, loss, steps)


def fit(
    module: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    batch: int = 128,
    lr: float = 4e-3,
) -> None:
    """Minimise loss(images in [-1, 1], their indices) by AdamW over random batches, one cycle of the rate."""
    adam = torch.optim.AdamW(module.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=max(steps, 2))
    for _ in range(steps):
        pick = torch.randint(len(images), (batch,), device=images.device)
        adam.zero_grad()
        loss(to_float(images[pick]), pick).backward()
        adam.step()
        rate.step()
