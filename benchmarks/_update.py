"""An agent and a batch of random numbers for it: the cost of an update does not depend on what they are."""

import torch

from wgflow_rl.agents import presets
from wgflow_rl.agents.agent import Agent
from wgflow_rl.agents.config import AgentConfig
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
