"""Random batches of a few chunks, and the noise of one update."""

import torch

from wgflow_rl.data.batch import Batch


def make_batch(b=8, s=3, h=2, a=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(b, s, generator=g),
        actions=torch.rand(b, h, a, generator=g) * 2 - 1,
        valid=torch.ones(b, h),
        returns=torch.randn(b, generator=g),
        discount=torch.full((b,), 0.9**h),
        next_obs=torch.randn(b, s, generator=g),
        next_actions=torch.zeros(b, h, a),
        next_valid=torch.zeros(b, h),
        complete=torch.ones(b),
    )


def noise_for(agent, seed=0, b=8):
    return agent.draw_noise(b, torch.Generator().manual_seed(seed))
