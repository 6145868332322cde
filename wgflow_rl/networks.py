"""Multilayer perceptrons that read one state and several vectors of that state at once."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(s - mean) / std with fixed statistics, kept with the weights: a policy is useless without its units."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


class StateMLP(nn.Module):
    """f(s, v): one output for each vector `v` of each state `s`; hidden layers are GELU, then LayerNorm if asked.

    The first layer is split, W [s, v] = W_s s + W_v v, so that a state shared by G vectors is multiplied once.
    Weights are drawn from variance-scaling(1, fan_avg, uniform) (Glorot uniform) with `generator`, biases are 0.

    Args:
        obs_dim, in_dim, out_dim: sizes of s, of v and of the output.
        hidden: width of each hidden layer, at least one.
        layer_norm: LayerNorm after each GELU (critics only, as in the Q-chunking protocol).
    """

    def __init__(
        self,
        obs_dim: int,
        in_dim: int,
        out_dim: int,
        hidden: tuple[int, ...],
        *,
        generator: torch.Generator,
        layer_norm: bool = False,
    ):
        super().__init__()
        if not hidden:
            raise ValueError("hidden is empty; give at least one width, for example hidden=(256, 256, 256)")
        self.obs_dim = obs_dim
        self.first = _linear(obs_dim + in_dim, hidden[0], generator)
        widths = (*hidden, out_dim)
        self.rest = nn.ModuleList(_linear(a, b, generator) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(w) if layer_norm else nn.Identity() for w in hidden)

    def forward(self, obs: Tensor, v: Tensor) -> Tensor:
        """obs [B, S], v [B, G, V] -> [B, G, out_dim]. Differentiable in both."""
        w_obs, w_v = self.first.weight.split([self.obs_dim, v.shape[-1]], dim=1)
        x = nn.functional.linear(obs, w_obs, self.first.bias)[:, None] + nn.functional.linear(v, w_v)
        for norm, layer in zip(self.norms, self.rest, strict=True):
            x = layer(norm(nn.functional.gelu(x)))
        return x


def _linear(size: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(size, out)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Policy(nn.Module):
    """Pushforward policy a = f(z, s): noise in, one action chunk out, one network evaluation (DFP Sec. 3)."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator):
        super().__init__()
        self.net = StateMLP(obs_dim, chunk_dim, chunk_dim, hidden, generator=generator)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [B, S], noise [B, G, C] ~ N(0, I) -> chunks [B, G, C], not clipped."""
        return self.net(obs, noise)


class TwinCritic(nn.Module):
    """Two independent action values Q_1, Q_2 of (state, chunk)."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator):
        super().__init__()
        self.nets = nn.ModuleList(
            StateMLP(obs_dim, chunk_dim, 1, hidden, generator=generator, layer_norm=True) for _ in range(2)
        )

    def forward(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """obs [B, S], chunks [B, G, C] -> [2, B, G]."""
        return torch.stack([net(obs, chunks).squeeze(-1) for net in self.nets])

    def mean(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """The value the protocol ranks and bootstraps with: (Q_1 + Q_2) / 2, [B, G]."""
        return self(obs, chunks).mean(0)
