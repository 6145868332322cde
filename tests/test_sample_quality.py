"""Scores of samples against closed forms and against their definitions."""

import pytest
import torch

import wgflow as wg
from tests.strategies import assert_close
from wgflow.testing import gaussians


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_frechet_distance_is_w2_of_gaussians_with_these_moments():
    x = randn(50, 3)
    assert_close(wg.frechet_distance(x, x + 2.0), torch.tensor(12.0).double(), rtol=1e-9)
    assert_close(wg.frechet_distance(3 * x, x), 4 * x.var(0).sum() + 4 * x.mean(0).square().sum())
    y = randn(40, 3, seed=1) @ randn(3, 3, seed=2)
    fits = [(t.mean(0), torch.cov(t.mT)) for t in (x, y)]
    assert_close(wg.frechet_distance(x, y), gaussians.w2(*fits).square())
    assert_close(wg.frechet_distance(x[:, :1], y[:, :1]),
                 (x[:, 0].mean() - y[:, 0].mean()) ** 2 + (x[:, 0].std() - y[:, 0].std()) ** 2)  # fmt: skip


def test_the_overlap_of_supports_is_its_definition():
    x, y, k = randn(30, 2), 1.5 * randn(40, 2, seed=1), 3
    ball = lambda t: torch.cdist(t, t).sort(-1).values[:, k]
    between = torch.cdist(x, y)
    in_y, in_x = between <= ball(y), between <= ball(x)[:, None]
    wanted = in_y.any(1), in_x.any(0), in_y.double().sum(1) / k, in_y.any(0)
    found = wg.support_overlap(x, y, k=k)
    for value, want in zip(found, wanted, strict=True):
        assert_close(value, want.double().mean())


def test_equal_sets_overlap_wholly_and_far_ones_not_at_all():
    x = randn(30, 2)
    same, apart = wg.support_overlap(x, x), wg.support_overlap(x, x + 100)
    assert same.precision == same.recall == same.coverage == 1
    assert apart == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("at least 6 points", lambda x: wg.support_overlap(x[:5], x)),
        ("k = 0", lambda x: wg.support_overlap(x, x, k=0)),
        ("one cloud", lambda x: wg.frechet_distance(x[None], x[None])),
        ("x holds NaN", lambda x: wg.frechet_distance(x / 0, x)),
    ],
)
def test_bad_samples_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(randn(20, 2))
