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


def test_noise_is_standard_normal_and_times_are_uniform():
    """By the first two moments and the range, decided by the generator."""
    cpu = torch.device("cpu")
    z = sampling.normal(100, 100, generator=rng(), device=cpu)
    t = sampling.uniform(100, 100, generator=rng(), device=cpu)
    assert_close(torch.stack([z.mean(), z.std()]), torch.tensor([0.0, 1.0]), rtol=0, atol=0.03)
    assert_close(torch.stack([t.mean(), t.var()]), torch.tensor([1 / 2, 1 / 12]), rtol=0, atol=0.01)
    assert t.min() >= 0
    assert t.max() < 1
    assert torch.equal(z, sampling.normal(100, 100, generator=rng(), device=cpu))


def test_a_logit_normal_time_is_the_sigmoid_of_a_normal():
    z = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    assert_close(sampling.logit_normal(z, -0.4, 0.5), 1 / (1 + (0.4 - 0.5 * z).exp()))


def test_euler_takes_the_steps_that_it_is_asked_for():
    """dx = x dt gives (1 + 1/M)^M, and dx = t dt the left Riemann sum (M - 1) / 2M."""
    x, obs = torch.ones(2, 3, 1, dtype=torch.float64), torch.empty(2, 0)
    for steps in (1, 2, 5):
        grown = sampling.euler(lambda obs, x, t: x, obs, x, steps)
        assert_close(grown, x * (1 + 1 / steps) ** steps)
        moved = sampling.euler(lambda obs, x, t: t, obs, 0 * x, steps)
        assert_close(moved, x * (steps - 1) / (2 * steps))


def test_the_noise_of_the_process_follows_a_linear_rate():
    """alpha_t^2 = exp(-int_0^t beta) with beta(t) = .1 + 19.9 t, and alpha^2 + sigma^2 = 1."""
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    alpha, sigma = sampling.vp_noise(t)
    assert_close(alpha.square(), (-(0.1 * t + 19.9 * t.square() / 2)).exp())
    assert_close(alpha.square() + sigma.square(), torch.ones_like(t))


def test_a_step_of_the_reversed_diffusion_is_the_posterior_of_two_gaussians():
    """x_s given x_t and x_0: the product of N(alpha_s x_0, sigma_s^2) and the likelihood of x_t; noise is new."""
    g, M, obs = rng(), 3, torch.empty(4, 0)
    noise = torch.randn(4, 2, M, 1, generator=g, dtype=torch.float64)
    eps = lambda obs, x, t: 0.3 * x - t
    x = noise[..., 0, :]
    for i in (3, 2, 1):
        time = torch.tensor(i / M, dtype=torch.float64)
        (a, s), (b, r) = sampling.vp_noise(time), sampling.vp_noise(time - 1 / M)
        x0 = ((x - s * eps(obs, x, time)) / a).clamp(-1, 1)
        if i == 1:
            x = x0
            break
        rest = s**2 - (a / b) ** 2 * r**2  # of x_t, once x_s is known
        precision = 1 / r**2 + (a / b) ** 2 / rest
        mean = (b * x0 / r**2 + (a / b) * x / rest) / precision
        x = mean + noise[..., M - i + 1, :] / precision.sqrt()
    assert_close(sampling.ancestral(eps, obs, noise), x)
    wild = sampling.ancestral(lambda obs, x, t: 50 * x, obs, noise)
    assert wild.abs().max() <= 1


def test_karras_levels_are_even_in_the_seventh_root():
    levels = sampling.karras_levels(9, 0.002, 80.0).double()
    steps = (levels ** (1 / 7)).diff()
    assert_close(levels[[0, -1]], torch.tensor([0.002, 80.0]).double(), rtol=1e-5, atol=0)
    assert_close(steps, steps.mean().expand(8), rtol=1e-4, atol=0)
