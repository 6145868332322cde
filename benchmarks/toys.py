"""Eight conditional distributions known exactly: what a policy cloned from one action per state should look like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Toy:
    """x = c(s) + R(s) u: one cloud of chunks u [T, A], turned and shifted by the state s in [-1, 1]^2.

    R turns the planes (0, 1), (2, 3), .. of the A coordinates by s_0 pi / 4 at every time; c repeats s / 2. A turn by a
    full circle is too hard for a small network in 2,000 steps under any field: it would measure the network instead.
    """

    name: str
    time: int  # T
    size: int  # A; D = T A
    weights: tuple[float, ...]
    centres: Tensor  # [K, D], where samples are counted as mode k: the nearest one's
    correlation: float = 0.0  # of neighbouring times
    sd: float | tuple[float, ...] = 0.1  # within modes, or of each mode; 0 is a point
    tail: float = math.inf  # degrees of freedom of Student's t within modes; infinite: a Gaussian
    ring: bool = False  # angle uniform, the centres only bin it

    @property
    def dim(self) -> int:
        return self.time * self.size

    def sample(self, s: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n draws of the true conditional for each state: s [B, 2] -> [B, n, D]."""
        B = len(s)
        eps = torch.randn(B, n, self.time, self.size, generator=generator)
        for t in range(1, self.time):  # AR(1), unit variance at every time
            eps[:, :, t] = (
                self.correlation * eps[:, :, t - 1]
                + math.sqrt(1 - self.correlation**2) * eps[:, :, t]
            )
        sd = torch.as_tensor(self.sd).expand(len(self.weights))
        if self.tail < math.inf:  # one divisor a sample: t in all its coordinates at once
            chi2 = torch.randn(B, n, int(self.tail), generator=generator).square().sum(-1)
            eps = eps * (self.tail / chi2).sqrt()[..., None, None]
        if self.ring:
            angle = 2 * math.pi * torch.rand(B, n, generator=generator)
            radius = 1 + sd[0] * eps[:, :, 0, 0]
            u = radius[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
        else:
            mode = torch.multinomial(
                torch.tensor(self.weights), B * n, replacement=True, generator=generator
            )
            mode = mode.view(B, n)
            u = self.centres[mode] + sd[mode][..., None] * eps.flatten(-2)
        return self._shift(s) + self._turn(s, u, +1)

    def frame(self, s: Tensor, x: Tensor) -> Tensor:
        """u of x: [B, 2], [B, n, D] -> [B, n, D]."""
        return self._turn(s, x - self._shift(s), -1)

    def modes(self, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share of each mode found, [B, K], and the spread within modes, over states (a ring's: of the radius).

        The spread is E|u - mean of its mode|: of the samples, so a missed mode does not count, and finite for any tail.
        """
        u = self.frame(s, x)
        nearest = torch.cdist(u, self.centres).argmin(-1)
        member = torch.nn.functional.one_hot(nearest, len(self.centres)).to(u.dtype)
        u = u.norm(dim=-1, keepdim=True) if self.ring else u
        count = member.sum(1)
        means = member.mT @ u / count.clamp_min(1)[..., None]
        return count / x.shape[1], (u - member @ means).norm(dim=-1).mean()

    @property
    def axes(self) -> Tensor:
        """[D, 2] the plane a picture shows: the plane itself, or (between the modes, mean of the chunk)."""
        if self.dim == 2:
            return torch.eye(2)
        return torch.linalg.qr(
            torch.stack([self.centres[0] - self.centres[1], torch.ones(self.dim)], -1)
        ).Q

    def _shift(self, s: Tensor) -> Tensor:
        return s[:, None, torch.arange(self.size).repeat(self.time) % 2] / 2

    def _turn(self, s: Tensor, u: Tensor, sign: int) -> Tensor:
        angle = sign * math.pi / 4 * s[:, 0, None, None, None]
        cos, sin = angle.cos(), angle.sin()
        v = u.unflatten(-1, (self.time, self.size)).clone()
        paired = self.size - self.size % 2
        a, b = v[..., 0:paired:2].clone(), v[..., 1:paired:2].clone()
        v[..., 0:paired:2], v[..., 1:paired:2] = cos * a - sin * b, sin * a + cos * b
        return v.flatten(-2)


def toys() -> tuple[Toy, ...]:
    """Modes in the plane, equal, unequal, many, of heavy tails, one of them a point; a ring; chunks of 25 and 50."""

    def circle(k: int, radius: float = 1.0) -> Tensor:
        angle = 2 * math.pi * torch.arange(k) / k
        return radius * torch.stack([angle.cos(), angle.sin()], -1)

    def swing(steps: int) -> Tensor:
        t, a = torch.arange(float(steps))[:, None], torch.arange(5.0)
        wave = 0.5 * torch.sin(math.pi * (t + 1) / steps + a).flatten()
        return torch.stack([wave, -wave])

    unequal = tuple(k / 55 for k in range(10, 0, -1))
    return (
        Toy("two modes", 1, 2, (0.5, 0.5), circle(2)),
        Toy("chunk", 5, 5, (0.7, 0.3), swing(5), correlation=0.9, sd=0.2),
        Toy("three modes", 1, 2, (0.6, 0.3, 0.1), circle(3)),
        Toy("ring", 1, 2, (0.125,) * 8, circle(8), ring=True),
        Toy("long chunk", 10, 5, (0.7, 0.3), swing(10), correlation=0.95, sd=0.2),
        Toy("ten modes", 1, 2, unequal, circle(10), sd=0.05),
        Toy("heavy tail", 1, 2, (0.7, 0.3), circle(2), tail=3),
        Toy("point and cloud", 1, 2, (0.5, 0.5), circle(2), sd=(0.0, 0.3)),
    )


def states(n: int, generator: torch.Generator) -> Tensor:
    """n states, uniform in [-1, 1]^2: [n, 2]."""
    return 2 * torch.rand(n, 2, generator=generator) - 1
