"""The drifts an agent can regress on, as printable values: `parse("likelihood:0.2+energy")`.

Each maps generated chunks x [B, G, C] and positives pos [B, P, C], weighted or not, to a displacement [B, G, C].
The bandwidth of `eq3`, the paper's field, is a length in action units. All others are fractions of the mean distance
between generated and positive chunks, E|x - y|, so that one number serves a 2-D and a 50-D chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import wgflow as wg


class Drift(Protocol):
    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        """The field itself, whose size says how far the samples still are from rest. [B, G, C]"""
        ...

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        """What the agent regresses on: the field, scaled to rms 1 where the kind says so. [B, G, C]"""
        ...


def unit_rms(v: Tensor) -> Tensor:
    """v / rms(v), one scalar for the whole batch, as the released code scales its drift."""
    return v / v.square().mean().sqrt().clamp_min(1e-8)


def mean_distance(x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
    """E|x - y| over the batch, a scalar length; y weighted when there are weights [B, P], rows summing to 1."""
    distance = torch.cdist(
        x, pos, compute_mode="donot_use_mm_for_euclid_dist"
    )  # exact in any precision
    if weights is not None:
        distance = (distance * weights[:, None]).sum(-1)
    return distance.mean().clamp_min(1e-8)


@dataclass(frozen=True)
class Eq3:
    """The paper's field, V = mean_shift(pos) - mean_shift(x) with a Gaussian kernel (DFP Eq. 3), not scaled.

    The bandwidth h is a length in action units, as in the paper (Tables 5 and 8).
    """

    h: float = 0.05

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return wg.drifting_field(x, pos, x, kernel=wg.Gaussian(self.h), pos_weights=weights)

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.raw(x, pos, weights)


@dataclass(frozen=True)
class Eq3Relative:
    """The same field with a bandwidth that adapts to the batch: h is a fraction of E|x - y|. Not in the paper."""

    h: float = 0.2

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        s = mean_distance(x, pos, weights)
        return s * wg.drifting_field(
            x / s, pos / s, x / s, kernel=wg.Gaussian(self.h), pos_weights=weights
        )

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.raw(x, pos, weights)


@dataclass(frozen=True)
class Released:
    """The released code's row-and-column-normalised field (`wgflow.published_field`), whose rms is fixed by its making.

    Scaled back to the released loss's own coordinates, in which each temperature has rms 1.
    """

    temperatures: tuple[float, ...] = (0.1,)

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return wg.published_field(x, pos, temperatures=self.temperatures, pos_weights=weights)

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.raw(x, pos, weights) / wg.published_scale(
            x, pos, pos_weights=weights
        ).clamp_min(1e-8)


@dataclass(frozen=True)
class Likelihood:
    """The maximum-likelihood drift (`wgflow.likelihood_field`, Gaussian), scaled to rms 1."""

    h: float = 0.2

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        s = mean_distance(x, pos, weights)
        return s * wg.likelihood_field(
            x / s, pos / s, kernel=wg.Gaussian(self.h), pos_weights=weights
        )

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return unit_rms(self.raw(x, pos, weights))


@dataclass(frozen=True)
class Energy:
    """The drift of the energy score with exponent beta (`wgflow.energy_field`), scaled to rms 1. No bandwidth."""

    beta: float = 1.0

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        s = mean_distance(x, pos, weights)
        return s * wg.energy_field(x / s, pos / s, beta=self.beta, pos_weights=weights)

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return unit_rms(wg.energy_field(x, pos, beta=self.beta, pos_weights=weights))


@dataclass(frozen=True)
class LaplaceScore:
    """The drift of the squared MMD with a Laplace kernel (`wgflow.mmd_field`), scaled to rms 1: it feels h and less."""

    h: float = 0.2

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        s = mean_distance(x, pos, weights)
        return (
            s
            * self.h
            * wg.mmd_field(x / s, pos / s, kernel=wg.Laplace(self.h), pos_weights=weights)
        )

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return unit_rms(self.raw(x, pos, weights))


@dataclass(frozen=True)
class Mixture:
    """The mean of several drifts, none rescaled first.

    `eq3:0.005+eq3:0.05` is the paper's pair of bandwidths {0.005, 0.05}. How the paper combines them it does not say:
    the mean is our choice; the sum would be twice as long.
    """

    parts: tuple[Drift, ...]

    def raw(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return torch.stack([part.raw(x, pos, weights) for part in self.parts]).mean(0)

    def __call__(self, x: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
        return torch.stack([part(x, pos, weights) for part in self.parts]).mean(0)


KINDS: dict[str, type] = {
    "eq3": Eq3,
    "eq3-relative": Eq3Relative,
    "released": Released,
    "likelihood": Likelihood,
    "energy": Energy,
    "laplace": LaplaceScore,
}


def parse(text: str) -> Drift:
    """Read a drift: names joined by '+', each with its number after ':', e.g. 'released:0.02,0.05,0.2'.

    Raises:
        ValueError: The message names the part that could not be read and the known names.
    """
    parts = tuple(_parse_one(part.strip(), text) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Mixture(parts)


def _parse_one(part: str, text: str) -> Drift:
    name, _, number = part.partition(":")
    if name not in KINDS:
        raise ValueError(
            f"field {text!r}: {name!r} is not one of {', '.join(KINDS)}; join several with '+'"
        )
    if not number:
        return KINDS[name]()
    try:
        values = tuple(float(v) for v in number.split(","))
    except ValueError:
        values = ()
    below = 2 if name == "energy" else float("inf")
    if (
        not values
        or not all(0 < v < below for v in values)
        or (len(values) > 1 and name != "released")
    ):
        wanted = {"energy": "a number between 0 and 2", "released": "positive numbers"}.get(
            name, "a positive number"
        )
        raise ValueError(
            f"field {text!r}: {number!r} after {name!r} cannot be used; wanted {wanted}, "
            "for example eq3:0.005+eq3:0.05, energy:0.5 or released:0.02,0.05,0.2"
        )
    return Released(values) if name == "released" else KINDS[name](*values)
