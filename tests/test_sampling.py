"""Laws of random choices among candidates."""

import torch
from torch.testing import assert_close

from wgflow_rl.agents import sampling


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_chosen_item_is_drawn_with_probability_softmax_q_over_temperature():
    score, temperature, states = torch.tensor([0.0, 1.0, -2.0, 0.5]), 0.7, 40_000
    items = torch.arange(4.0).expand(states, 4)[..., None]
    chosen = sampling.choose(
        items, score.expand(states, 4), temperature=temperature, generator=rng()
    )
    shares = torch.bincount(chosen.flatten().long(), minlength=4) / states
    assert_close(shares, (score / temperature).softmax(0), rtol=0, atol=4 * (0.25 / states) ** 0.5)


def test_temperature_zero_and_its_limit_choose_the_best():
    items, score = torch.randn(50, 6, 3, generator=rng()), torch.randn(50, 6, generator=rng(1))
    best = sampling.top_k(items, score, 1)
    assert_close(sampling.choose(items, score, temperature=0.0, generator=rng()), best)
    assert_close(sampling.choose(items, score, temperature=1e-5, generator=rng()), best)
