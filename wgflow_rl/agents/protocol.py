"""What the loop asks of an agent, and the numbers that every method has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wgflow_rl.data.batch import Batch


@dataclass(frozen=True)
class AgentConfig:
    """Numbers of the protocol that every method shares (Li et al. 2025; Koo et al. 2026, Table 5)."""

    chunk: int = 5  # h, actions per chunk, executed open loop; 1 on every offline row
    gamma: float = 0.99
    lr: float = 3e-4  # Adam, all networks
    lr_end: float = (
        1.0  # fraction of lr that is left at the end of the online phase, linearly; 1: constant
    )
    target_rate: float = 5e-3  # Polyak rate of the target networks
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    batch: int = 256
    standardise: bool = False  # observations to zero mean and unit variance over the offline data

    def check(self) -> None:
        """Raises: ValueError naming the first number that cannot be used, as its flag, and what was wanted."""
        at_least(1, chunk=self.chunk, batch=self.batch, hidden=min(self.hidden, default=0))
        fraction(target_rate=self.target_rate, lr_end=self.lr_end)
        if not 0 < self.gamma < 1:
            raise ValueError(f"--gamma is {self.gamma}; wanted a discount in (0, 1)")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr is {self.lr}; wanted a positive learning rate")


class Agent(Protocol):
    """Everything training, evaluation and checkpoints need. Built by `methods.build`; there is no base class.

    An update is a function of parameters, batch and noise drawn before it, so it repeats exactly.
    """

    @property
    def cfg(self) -> AgentConfig: ...

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All that is learned or counted, by name: with the optimiser's moments, what a checkpoint holds."""
        ...

    def draw_noise(self, batch: int, generator: torch.Generator) -> Any:
        """All the randomness of one update of `batch` rows."""
        ...

    def loss(self, batch: Batch, noise: Any, *, online: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """What `updates.update` descends, a scalar; and scalars to log, without gradient.

        What ends in `_loss` stops the run when it is not finite. No value is read (`float`, `if`), nothing is made on
        the host: the same lines are captured as a CUDA graph and mapped over seeds.
        """
        ...

    def settle(self) -> None:
        """What follows the optimiser's step: slow copies, elementwise in every tensor."""
        ...

    def start_online(self) -> None:
        """Called once, before the first environment step."""
        ...

    def act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """obs [B, S] -> the chunk to execute, [B, h, A] in [-1, 1]. No gradient.

        `wgflow_rl.export` follows it at one B: draw with `ops.normal` and `ops.uniform`, sizes from shapes, not len.
        """
        ...

    def diagnose(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Measures on held-out chunks that the losses hide; too slow for every update. No gradient."""
        ...


def at_least(least: float, **numbers: float) -> None:
    """Raises: ValueError naming the first number below `least`, or NaN, as its flag."""
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"--{_flag(name)} is {value}; wanted at least {least}")


def fraction(**numbers: float) -> None:
    """Raises: ValueError naming the first number outside [0, 1] as its flag."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"--{_flag(name)} is {value}; wanted a share in [0, 1]")


def above(least: float, **numbers: float) -> None:
    """Raises: ValueError naming the first number that is not above `least` and finite, as its flag."""
    for name, value in numbers.items():
        if not least < value < math.inf:
            raise ValueError(f"--{_flag(name)} is {value}; wanted a number above {least}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
