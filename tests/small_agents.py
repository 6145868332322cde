"""Small agents, batches and critics for the laws of agents."""

from dataclasses import replace

import torch
from torch import nn

from wgflow_rl.agents import presets
from wgflow_rl.agents.networks import TwinCritic
from wgflow_rl.data.batch import Batch

B, S, A = 8, 3, 2
TARGETS = {  # target network: (its online network, setting of its rate)
    "target_critic": ("critic", "target_rate"),
    "target_policy": ("policy", "target_rate"),
    "old_policy": ("policy", "old_rate"),
}


def build(method, *, obs_mean=None, obs_std=None, **numbers):
    """A method at the smallest size. Its target networks differ from the online ones, as they do after a while."""
    cfg = replace(presets.ROWS[method], hidden=(16, 16), batch=B)
    small = {"candidates": 6, "top_k": 2, "target_samples": 3, "act_samples": 5, "flow_steps": 3}
    small = {name: v for name, v in small.items() if hasattr(cfg, name)}
    cfg = replace(cfg, **(small | numbers))
    agent = presets.build(cfg, obs_dim=S, action_dim=A, seed=1, obs_mean=obs_mean, obs_std=obs_std)
    g = torch.Generator().manual_seed(2)
    for name in TARGETS:
        for p in getattr(agent, name, nn.Module()).parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return agent


def without_penalty(method):
    """The settings that leave a target to the values alone."""
    names = ("critic_penalty", "pessimism")
    return {name: 0.0 for name in names if hasattr(presets.ROWS[method], name)}


def make_batch(h, seed=0, b=B, s=S, a=A):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(b, s, generator=g),
        actions=torch.rand(b, h, a, generator=g) * 2 - 1,
        valid=torch.ones(b, h),
        returns=torch.randn(b, generator=g),
        discount=torch.full((b,), 0.9**h),
        next_obs=torch.randn(b, s, generator=g),
        next_actions=torch.rand(b, h, a, generator=g) * 2 - 1,
        next_valid=torch.ones(b, h),
        complete=torch.ones(b),
    )


def noise_for(agent, seed=0, b=B):
    return agent.draw_noise(b, torch.Generator().manual_seed(seed))


class Twins(TwinCritic):
    """Two critics that are given functions (obs, chunks) -> [B, n]."""

    def __init__(self, first, second):
        nn.Module.__init__(self)
        self.both = (first, second)

    def forward(self, obs, chunks):
        return torch.stack([q(obs, chunks) for q in self.both])


def constant(value):
    return lambda obs, chunks: torch.full(chunks.shape[:-1], float(value))
