"""A DFP agent, a batch of random numbers, and the arithmetic of an update, which does not depend on what they are."""

import itertools

import torch

from wgflow_rl.agents import presets
from wgflow_rl.agents.agent import Agent
from wgflow_rl.agents.config import AgentConfig
from wgflow_rl.agents.dfp import DFPConfig
from wgflow_rl.data.batch import Batch

OBS, ACTION = 37, 5  # cube-double's


def random_batch(cfg: AgentConfig, generator: torch.Generator) -> Batch:
    """Standard normal observations, uniform actions, and one chunk in 16 cut off in its middle."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def actions() -> torch.Tensor:
        return torch.rand(cfg.batch, cfg.chunk, ACTION, generator=generator) * 2 - 1

    valid = torch.ones(cfg.batch, cfg.chunk)
    valid[::16, cfg.chunk // 2 + 1 :] = 0
    return Batch(
        obs=normal(cfg.batch, OBS),
        actions=actions(),
        valid=valid,
        returns=normal(cfg.batch),
        discount=torch.full((cfg.batch,), cfg.gamma**cfg.chunk),
        next_obs=normal(cfg.batch, OBS),
        next_actions=actions(),
        next_valid=valid,
        complete=valid[:, -1],
    )


def agent_of(cfg: AgentConfig, device: str = "cpu") -> Agent:
    return presets.build(cfg, obs_dim=OBS, action_dim=ACTION, seed=0, device=device)


def flops_of_update(cfg: DFPConfig) -> int:
    """Floating-point operations of the matrix products: 2 for each weight and row, 4 more where gradients are taken.

    The first layer's part of the state counts once a state, and no gradient is taken to what enters a network.
    """
    chunk, states = cfg.chunk * ACTION, cfg.batch

    def network(n: int, out: int, *, learns: bool = False) -> int:
        first = states * (OBS + n * chunk) * cfg.hidden[0]
        deep = states * n * sum(a * b for a, b in itertools.pairwise((*cfg.hidden, out)))
        return 2 * (first + deep) + learns * 2 * (first + 2 * deep)

    critics = 2 * network(1, 1, learns=True)
    target = network(cfg.target_samples, chunk) + 2 * network(1, 1)
    if cfg.target_samples > 1:
        target += 2 * network(cfg.target_samples, 1)
    generated = network(cfg.generated, chunk, learns=True)
    candidates = network(cfg.candidates, chunk) + 2 * network(cfg.candidates, 1)
    # Each term's field sums over positives (likelihood and energy) and over its own points (energy). The sum over a
    # single positive is no matrix product.
    pairs = cfg.generated * sum(2 * n * (n > 1) + cfg.generated for n in (1, cfg.top_k))
    return critics + target + generated + candidates + 2 * states * pairs * chunk
