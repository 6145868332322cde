"""Multilayer perceptrons that read one state and several vectors of that state at once."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

# Vectors of a pass without gradient that a CPU takes at a time. The activations of 1024 (2 MB at width 512) stay in its
# cache; with those of 4096 an update of the paper's size is 3 to 9 % slower (docs/performance.md).
BLOCK = 1024

_reduced = False  # plain variables: torch.compile cannot look into a ContextVar
_together = 1
_as_it_is = contextlib.nullcontext()


@contextlib.contextmanager
def reduced(on: bool = True) -> Iterator[None]:
    """Inside, passes without gradient multiply their hidden layers in bfloat16.

    The first layer, which sees states and actions in their units, and the last, whose values are compared with each
    other, stay as they are: with eight bits, Q = -30 comes in steps of 1/8.
    """
    global _reduced
    before, _reduced = _reduced, on
    try:
        yield
    finally:
        _reduced = before


@contextlib.contextmanager
def together(count: int) -> Iterator[None]:
    """Inside, `count` networks make each pass side by side (`torch.func.vmap`), and their blocks share the cache."""
    global _together
    before, _together = _together, count
    try:
        yield
    finally:
        _together = before


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
            raise ValueError(
                "hidden is empty; give at least one width, for example hidden=(256, 256, 256)"
            )
        self.obs_dim = obs_dim
        self.first = _linear(obs_dim + in_dim, hidden[0], generator)
        widths = (*hidden, out_dim)
        self.rest = nn.ModuleList(_linear(a, b, generator) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(w) if layer_norm else nn.Identity() for w in hidden)

    def forward(self, obs: Tensor, v: Tensor) -> Tensor:
        """obs [B, S], v [B, G, V] -> [B, G, out_dim]. Differentiable in both."""
        states = max(1, BLOCK // (_together * v.shape[1]))
        if torch.is_grad_enabled() or obs.device.type != "cpu" or obs.shape[0] <= states:
            return self._layers(obs, v)
        blocks = zip(obs.split(states), v.split(states), strict=True)
        return torch.cat([self._layers(*block) for block in blocks])

    def _layers(self, obs: Tensor, v: Tensor) -> Tensor:
        w_obs, w_v = self.first.weight.split([self.obs_dim, v.shape[-1]], dim=1)
        x = nn.functional.linear(obs, w_obs, self.first.bias)[:, None] + nn.functional.linear(
            v, w_v
        )
        *hidden, (last_norm, last) = zip(self.norms, self.rest, strict=True)
        low = _reduced and not torch.is_grad_enabled()
        # Each weight is used once a pass, so autocast's cache of the converted ones would only keep memory.
        with (
            torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False) if low else _as_it_is
        ):
            for norm, layer in hidden:
                x = layer(norm(nn.functional.gelu(x)))
        return last(last_norm(nn.functional.gelu(x.to(v.dtype))))


def _linear(size: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(size, out)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Policy(nn.Module):
    """Pushforward policy a = f(z, s): noise in, one action chunk out, one network evaluation (DFP Sec. 3)."""

    def __init__(
        self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator
    ):
        super().__init__()
        self.net = StateMLP(obs_dim, chunk_dim, chunk_dim, hidden, generator=generator)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [B, S], noise [B, G, C] ~ N(0, I) -> chunks [B, G, C], not clipped."""
        return self.net(obs, noise)


class VectorField(nn.Module):
    """u(s, x, t_1, ..., t_k): velocity of a flow or noise of a diffusion (k = 1), mean velocity (k = 2)."""

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden: tuple[int, ...],
        *,
        generator: torch.Generator,
        times: int = 1,
    ):
        super().__init__()
        # Times enter as plain numbers, as in the flow policies of FQL and Q-chunking: no Fourier features.
        self.net = StateMLP(obs_dim, chunk_dim + times, chunk_dim, hidden, generator=generator)

    def forward(self, obs: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        """obs [B, S], x [B, G, C], each time [B, G, 1] -> [B, G, C]."""
        return self.net(obs, torch.cat([x, *times], -1))


class StateFunction(nn.Module):
    """f(s) alone: a state value (out_dim 1), or the one action chunk of a policy without noise."""

    def __init__(
        self,
        obs_dim: int,
        out_dim: int,
        hidden: tuple[int, ...],
        *,
        generator: torch.Generator,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.net = StateMLP(obs_dim, 0, out_dim, hidden, generator=generator, layer_norm=layer_norm)

    def forward(self, obs: Tensor) -> Tensor:
        """obs [B, S] -> [B, 1, out_dim]."""
        return self.net(obs, obs[:, None, :0])


class TwinCritic(nn.Module):
    """Two independent action values Q_1, Q_2 of (state, chunk)."""

    def __init__(
        self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator
    ):
        super().__init__()
        self.nets = nn.ModuleList(
            StateMLP(obs_dim, chunk_dim, 1, hidden, generator=generator, layer_norm=True)
            for _ in range(2)
        )

    def forward(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """obs [B, S], chunks [B, G, C] -> [2, B, G]."""
        return torch.stack([net(obs, chunks).squeeze(-1) for net in self.nets])

    def mean(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """The value the protocol ranks and bootstraps with: (Q_1 + Q_2) / 2, [B, G]."""
        return self(obs, chunks).mean(0)


class Counter(nn.Module):
    """A number of updates that is kept with the weights."""

    count: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def tick(self) -> None:
        """Count one more."""
        self.count += 1


def slow_copy(module: M) -> M:
    """A copy that is moved by `ops.polyak_` and never by a gradient."""
    return copy.deepcopy(module).requires_grad_(False)


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """The module with its parameters as constants: gradients pass through to its inputs and end there."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return lambda *args: torch.func.functional_call(module, constants, args)


def standardiser(
    on: bool, obs_dim: int, mean: Tensor | None, std: Tensor | None, device: str | torch.device
) -> Standardise:
    """`Standardise` with the statistics of the data, or the identity when off or when there are none."""
    if not on or mean is None or std is None:
        mean, std = torch.zeros(obs_dim), torch.ones(obs_dim)
    return Standardise(mean, std).to(device)
