"""Four conditional distributions known exactly: what a policy cloned from one action per state should look like."""

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
    sd: float = 0.1
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
                self.correlation * eps[:, :, t - 1] + math.sqrt(1 - self.correlation**2) * eps[:, :, t]
            )
        if self.ring:
            angle = 2 * math.pi * torch.rand(B, n, generator=generator)
            radius = 1 + self.sd * eps[:, :, 0, 0]
            u = radius[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
        else:
            mode = torch.multinomial(torch.tensor(self.weights), B * n, replacement=True, generator=generator)
            u = self.centres[mode].view(B, n, self.dim) + self.sd * eps.flatten(-2)
        return self._shift(s) + self._turn(s, u, +1)

    def frame(self, s: Tensor, x: Tensor) -> Tensor:
        """u of x: [B, 2], [B, n, D] -> [B, n, D]."""
        return self._turn(s, x - self._shift(s), -1)

    def modes(self, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share of each mode found, [B, K], and the sd within modes, pooled over states (a ring's: of the radius)."""
        u = self.frame(s, x)
        nearest = torch.cdist(u, self.centres).argmin(-1)
        member = torch.nn.functional.one_hot(nearest, len(self.centres)).to(u.dtype)
        u = u.norm(dim=-1, keepdim=True) if self.ring else u
        count = member.sum(1)
        means = member.mT @ u / count.clamp_min(1)[..., None]
        degrees = (count - 1).clamp_min(0).sum() * u.shape[-1]
        return count / x.shape[1], ((u - member @ means).square().sum() / degrees).sqrt()

    @property
    def axes(self) -> Tensor:
        """[D, 2] the plane a picture shows: the plane itself, or (between the modes, mean of the chunk)."""
        if self.dim == 2:
            return torch.eye(2)
        return torch.linalg.qr(torch.stack([self.centres[0] - self.centres[1], torch.ones(self.dim)], -1)).Q

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
    """Two modes, 5 x 5 chunks that swing one way or the other (.7, .3), modes of weight .6 .3 .1, and a ring."""

    def circle(k: int) -> Tensor:
        angle = 2 * math.pi * torch.arange(k) / k
        return torch.stack([angle.cos(), angle.sin()], -1)

    t, a = torch.arange(5.0)[:, None], torch.arange(5.0)
    swing = 0.5 * torch.sin(math.pi * (t + 1) / 5 + a).flatten()
    return (
        Toy("two modes", 1, 2, (0.5, 0.5), circle(2)),
        Toy("chunk", 5, 5, (0.7, 0.3), torch.stack([swing, -swing]), correlation=0.9, sd=0.2),
        Toy("three modes", 1, 2, (0.6, 0.3, 0.1), circle(3)),
        Toy("ring", 1, 2, (0.125,) * 8, circle(8), ring=True),
    )


def states(n: int, generator: torch.Generator) -> Tensor:
    """n states, uniform in [-1, 1]^2: [n, 2]."""
    return 2 * torch.rand(n, 2, generator=generator) - 1
