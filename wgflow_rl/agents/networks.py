"""Multilayer perceptrons that read one state and several vectors of that state at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Vectors per block of a CPU pass without gradient. The activations of 1024 (2 MB at width 512) stay in the cache; with
# blocks of 4096 an update of the paper's size is 3 to 9 % slower (docs/performance.md).
BLOCK = 1024


class Standardise(nn.Module):
    """(s - mean) / std with fixed statistics, saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


class StateMLP(nn.Module):
    """f(s, v): one output for each vector `v` of each state `s`; hidden layers are GELU, optionally with LayerNorm.

    The first layer is split, W [s, v] = W_s s + W_v v, so that a state shared by G vectors is multiplied once.
    Weights are Glorot uniform, drawn with `generator`; biases are 0.

    Args:
        obs_dim: size of s.
        in_dim: size of v.
        out_dim: size of the output.
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
        states = max(1, BLOCK // v.shape[1])
        if torch.is_grad_enabled() or obs.device.type != "cpu" or obs.shape[0] <= states:
            return self._layers(obs, v)
        blocks = zip(obs.split(states), v.split(states), strict=True)
        return torch.cat([self._layers(*block) for block in blocks])

    def _layers(self, obs: Tensor, v: Tensor) -> Tensor:
        w_obs, w_v = self.first.weight.split([self.obs_dim, v.shape[-1]], dim=1)
        shared = nn.functional.linear(obs, w_obs, self.first.bias)
        x = nn.functional.linear(v, w_v).add_(shared[:, None])
        for norm, layer in zip(self.norms, self.rest, strict=True):
            x = layer(norm(nn.functional.gelu(x)))
        return x


def _linear(size: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(size, out)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualStateMLP(nn.Module):
    """f(s, v) = head(W_s trunk(s) + W_v v), where trunk and head are stacks of blocks x + W_2 gelu(W_1 LayerNorm(x)).

    Most of the work depends on the state alone and is done once for all its vectors. Weights are Glorot uniform, drawn
    with `generator`; biases are 0.

    Args:
        obs_dim: size of s.
        in_dim: size of v.
        out_dim: size of the output.
        hidden: width of each block of the head, all equal.
        trunk: width of each block of the trunk, all equal.
    """

    def __init__(
        self,
        obs_dim: int,
        in_dim: int,
        out_dim: int,
        hidden: tuple[int, ...],
        trunk: tuple[int, ...],
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        for name, widths in (("hidden", hidden), ("trunk", trunk)):
            if len(set(widths)) != 1:
                raise ValueError(
                    f"{name} is {widths}; residual blocks have equal widths, for example {name}=(256, 256)"
                )
        self.trunk = nn.Sequential(
            _linear(obs_dim, trunk[0], generator),
            *(ResidualBlock(width, generator) for width in trunk),
            nn.LayerNorm(trunk[0]),
        )
        self.state = _linear(trunk[0], hidden[0], generator)
        self.vector = nn.Linear(in_dim, hidden[0], bias=False) if in_dim else None
        if self.vector is not None:
            nn.init.xavier_uniform_(self.vector.weight, generator=generator)
        self.head = nn.Sequential(
            *(ResidualBlock(width, generator) for width in hidden),
            nn.LayerNorm(hidden[0]),
            _linear(hidden[0], out_dim, generator),
        )

    def forward(self, obs: Tensor, v: Tensor) -> Tensor:
        """obs [B, S], v [B, G, V] -> [B, G, out_dim]. Differentiable in both."""
        x = self.state(self.trunk(obs))[:, None]
        return self.head(x if self.vector is None else x + self.vector(v))


class ResidualBlock(nn.Module):
    """x + W_2 gelu(W_1 LayerNorm(x))."""

    def __init__(self, width: int, generator: torch.Generator):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            _linear(width, width, generator),
            nn.GELU(),
            _linear(width, width, generator),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class StateNetwork(nn.Module):
    """Base of policies and vector fields: `net` maps a state and vectors of it to chunks.

    Args:
        obs_dim: size of an observation.
        chunk_dim: size of a chunk.
        hidden: widths, see `StateMLP` and `ResidualStateMLP`.
        trunk: widths of the blocks that read the state alone; (): a `StateMLP`.
    """

    noise = True  # the vectors hold a chunk: noise, or a point of a flow
    times = 0  # number of times after it

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden: tuple[int, ...],
        trunk: tuple[int, ...] = (),
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        sizes = (obs_dim, self.noise * chunk_dim + self.times, chunk_dim, hidden)
        if trunk:
            self.net: nn.Module = ResidualStateMLP(*sizes, trunk, generator=generator)
        else:
            self.net = StateMLP(*sizes, generator=generator)


class Policy(StateNetwork):
    """Pushforward policy a = f(z, s): noise in, one action chunk out, one network evaluation (DFP Sec. 3)."""

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [B, S], noise [B, G, C] ~ N(0, I) -> chunks [B, G, C], not clipped."""
        return self.net(obs, noise)


class VectorField(StateNetwork):
    """v(s, x, t): velocity of a flow, or predicted noise of a diffusion.

    Times enter as plain numbers, as in the flow policies of FQL and Q-chunking: no Fourier features.
    """

    times = 1

    def forward(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """obs [B, S], x [B, G, C], t [B, G, 1] -> [B, G, C]."""
        return self.net(obs, torch.cat([x, t], -1))


class MeanVelocityPolicy(StateNetwork):
    """One-step MeanFlow policy a = e - u(s, e, 0, 1), u the mean velocity between two times (Geng et al. 2025)."""

    times = 2

    def forward(self, obs: Tensor, e: Tensor) -> Tensor:
        """obs [B, S], noise e [B, G, C] ~ N(0, I) -> chunks [B, G, C], not clipped."""
        zero = e.new_zeros(*e.shape[:-1], 1)
        return e - self.u(obs, e, zero, zero + 1)

    def u(self, obs: Tensor, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Mean velocity at z [B, G, C] between times r <= t [B, G, 1]; noise is at t = 1. -> [B, G, C]."""
        return self.net(obs, torch.cat([z, r, t], -1))


class DeterministicPolicy(StateNetwork):
    """a = f(s): one action chunk per state."""

    noise = False

    def forward(self, obs: Tensor) -> Tensor:
        """obs [B, S] -> [B, 1, C], not clipped."""
        return self.net(obs, obs[:, None, :0])


class StateValue(nn.Module):
    """State value V(s)."""

    def __init__(self, obs_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator):
        super().__init__()
        self.net = StateMLP(obs_dim, 0, 1, hidden, generator=generator, layer_norm=True)

    def forward(self, obs: Tensor) -> Tensor:
        """obs [B, S] -> [B]."""
        return self.net(obs, obs[:, None, :0])[:, 0, 0]


class CriticEnsemble(nn.Module):
    """Independent action values Q_1 ... Q_K of (state, chunk).

    Args:
        chunk_dim: coordinates of the executed actions, the first of a chunk; those after them are not read.
        number: K.
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden: tuple[int, ...],
        number: int,
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        self.chunk_dim = chunk_dim
        self.nets = nn.ModuleList(
            StateMLP(obs_dim, chunk_dim, 1, hidden, generator=generator, layer_norm=True)
            for _ in range(number)
        )

    def forward(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """obs [B, S], chunks [B, G, C or more] -> [K, B, G]."""
        chunks = chunks[..., : self.chunk_dim]
        return torch.stack([net(obs, chunks).squeeze(-1) for net in self.nets])

    def mean(self, obs: Tensor, chunks: Tensor) -> Tensor:
        """Mean of the values, [B, G], with which Q-chunking ranks and bootstraps."""
        return self(obs, chunks).mean(0)


class TwinCritic(CriticEnsemble):
    """Two critics."""

    def __init__(
        self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], *, generator: torch.Generator
    ):
        super().__init__(obs_dim, chunk_dim, hidden, 2, generator=generator)


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """The module with constant parameters: gradients reach its inputs only."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return lambda *args: torch.func.functional_call(module, constants, args)
