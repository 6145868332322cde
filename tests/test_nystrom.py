"""Kernel averages through landmarks: their closed forms, and a bound that every row keeps, whatever the landmarks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wgflow as wg
from tests.strategies import KERNELS, assert_close, clouds, kernels
from wgflow import Gaussian, NystromAverage, NystromField, drifting_field, mean_shift
from wgflow.kernels import divide

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def single(cloud):
    """The first cloud of a batch."""
    while cloud.dim() > 2:
        cloud = cloud[0]
    return cloud


@given(c=clouds(), kernel=kernels(), spread=st.sampled_from([1.0, 5.0]))
def test_no_row_errs_by_more_than_its_bound(c, kernel, spread):
    """Few landmarks beside the samples, weights of 0, and points far from both."""
    y, u, w = single(c.pos), single(c.neg), c.wp.reshape(-1, c.wp.shape[-1])[0]
    average = NystromAverage(y, u, kernel, w)
    x = spread * c.x
    exact = mean_shift(x, y, kernel=kernel, weights=w)
    error, bound = (average.mean_shift(x) - exact).norm(dim=-1), average.error_bound(x)
    assert bool((error <= bound + 1e-9 * c.scale).all())


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("count", [10, 80])
def test_no_row_of_a_larger_cloud_errs_by_more_than_its_bound(make, count):
    y, x, w = normal(400, 2), 1.5 * normal(3, 100, 2, seed=1), normal(400, seed=2).square()
    kernel = make(0.8)
    average = NystromAverage(y, y[:count], kernel, w)
    exact = mean_shift(x, y, kernel=kernel, weights=w)
    bound = average.error_bound(x)
    assert bool(((average.mean_shift(x) - exact).norm(dim=-1) <= bound).all())
    if count == 80:
        assert bound.isfinite().double().mean() > 0.2


@given(c=clouds(batch=False), tolerance=st.sampled_from([1e-6, 0.1]))
def test_a_tolerance_bounds_every_error(c, tolerance):
    average = NystromAverage(c.pos, c.neg, Gaussian(c.h), c.wp)
    x = 3 * c.x
    exact = mean_shift(x, c.pos, kernel=Gaussian(c.h), weights=c.wp)
    error = (average.mean_shift(x, tolerance=tolerance) - exact).norm(dim=-1)
    assert error.max() <= tolerance + 1e-9 * c.scale


@given(c=clouds(batch=False), kernel=kernels())
def test_with_all_samples_as_landmarks_the_average_is_exact_at_them(c, kernel):
    average = NystromAverage(c.pos, c.pos, kernel, c.wp)
    at = c.pos[c.wp > 0]
    exact = mean_shift(at, c.pos, kernel=kernel, weights=c.wp)
    assert_close(average.mean_shift(at), exact, atol=1e-5 * c.scale)


def test_one_landmark_gives_the_same_mean_everywhere():
    """Σ k(u, y) y / Σ k(u, y), that of the landmark."""
    y, u, x = normal(50, 3), normal(1, 3, seed=1), normal(20, 3, seed=2)
    mean = x + NystromAverage(y, u, Gaussian(1.0)).mean_shift(x)
    assert_close(mean, (u + mean_shift(u, y, kernel=Gaussian(1.0))).expand(20, 3))


@pytest.mark.parametrize("parts", [2, 5])
def test_sums_of_shards_with_common_landmarks_are_those_of_the_whole(parts):
    """mass_s = Σ over shard s; the mean of the whole is the mean of theirs, weighted by mass."""
    y, w, x = normal(60, 2), normal(60, seed=1).square(), normal(30, 2, seed=2)
    kernel, u = Gaussian(1.0), y[::6]

    def mass_and_mean(part):
        average = NystromAverage(y[part], u, kernel, w[part])
        mass = kernel.log_pairs(x, u).exp() @ average.folded[:, 0] * w[part].sum()
        return mass[:, None], x + average.mean_shift(x)

    sums = [mass_and_mean(slice(s, None, parts)) for s in range(parts)]
    masses, means = (torch.stack(each) for each in zip(*sums, strict=True))
    whole = (masses * means).sum(0) / masses.sum(0)
    assert_close(mass_and_mean(slice(None))[1], whole, atol=1e-6)


def test_means_that_cannot_be_right_are_reported_and_summed_exactly():
    """Beyond its landmarks the mass changes sign, and the quotient explodes to 20 times the radius of the cloud."""
    y, x, kernel = normal(500, 2), 3 * normal(2000, 2, seed=1), Gaussian(0.5)
    average = NystromAverage(y, y[:16], kernel)
    mass, moment = (kernel.log_pairs(x, y[:16]).exp() @ average.folded).split([1, 2], -1)
    negative, far = (mass <= 0).squeeze(-1), (moment / mass).norm(dim=-1) > 10 * average.reach
    assert negative.any() and far.any()
    assert average.error_bound(x)[negative | far].isinf().all()
    shift = average.mean_shift(x)
    assert_close(shift[negative | far], mean_shift(x, y, kernel=kernel)[negative | far])
    assert (x + shift - average.centre).norm(dim=-1).max() <= average.reach + 1e-9


def test_more_landmarks_lower_the_residual_and_the_bound():
    y, x = normal(300, 2), 0.5 * normal(50, 2, seed=1)
    bounds = [NystromAverage(y, y[:n], Gaussian(1.0)).error_bound(x).max() for n in (10, 40, 160)]
    assert bounds[0] > 10 * bounds[1] > 100 * bounds[2]


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_the_slope_of_a_mean_shift_is_that_of_finite_differences(tolerance):
    average = NystromAverage(normal(40, 2), normal(6, 2, seed=1), Gaussian(0.9))
    x = normal(5, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: average.mean_shift(x, tolerance=tolerance), (x,))
    assert not average.error_bound(x).requires_grad


@given(c=clouds(batch=False, degenerate=False), own=st.booleans())
def test_the_field_is_eq_3_within_its_tolerance(c, own):
    kernel = Gaussian(c.h)
    field = NystromField(NystromAverage(c.pos, c.pos, kernel, c.wp), 1e-3, skip_self=own)
    neg, weights = (c.x, None) if own else (c.neg, c.wn)
    V = field(c.x, c.pos, neg=None if own else neg, neg_weights=weights)
    settings = {"pos_weights": c.wp, "neg_weights": weights, "skip_self": own}
    exact = drifting_field(c.x, c.pos, neg, kernel=kernel, **settings)
    assert (V - exact).norm(dim=-1).max() <= 1e-3 + 1e-9


def test_lengths_per_dimension_and_matrices_are_divided_coordinates():
    y, x = normal(80, 2), normal(30, 2, seed=1)
    factor = torch.tensor([[0.7, 0.0], [0.3, 1.2]], dtype=DOUBLE)
    average = NystromAverage(y, y[:10], Gaussian(factor))
    divided = NystromAverage(divide(y, factor), divide(y[:10], factor), Gaussian(1.0))
    shift = divided.mean_shift(divide(x, factor))
    near = average.error_bound(x) < 1
    assert near.any()
    assert_close(average.mean_shift(x)[near], (shift @ factor.mT)[near], atol=1e-6)


def test_an_average_moves_and_is_stored_like_a_module():
    y = normal(30, 2).float()
    average = NystromAverage(y, y[:5], Gaussian(torch.tensor([0.5, 1.0])))
    other = NystromAverage(y + 1, y[:5] - 1, Gaussian(torch.tensor([1.0, 1.0])))
    other.load_state_dict(average.state_dict())
    x = normal(7, 2, seed=1).float()
    assert torch.equal(other.mean_shift(x), average.mean_shift(x))
    assert average.mean_shift(x).dtype == torch.float32
    with pytest.raises(ValueError, match="lost their digits"):
        average.double().float().mean_shift(x)


Y = torch.ones(4, 2).cumsum(0)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("one NystromAverage per cloud", lambda: NystromAverage(Y[None], Y, Gaussian(1.0))),
        ("landmarks are empty", lambda: NystromAverage(Y, Y[:0], Gaussian(1.0))),
        ("landmarks has 2|but landmarks has 1", lambda: NystromAverage(Y, Y[:, :1], Gaussian(1.0))),
        ("not positive definite", lambda: NystromAverage(Y, Y, wg.biweight(9.0))),
        ("infinite|not finite", lambda: NystromAverage(Y, Y, wg.Laplace(1.0).gradient_kernel)),
        ("one for the whole cloud", lambda: NystromAverage(Y, Y, Gaussian(torch.ones(3, 1, 1)))),
        ("samples holds NaN", lambda: NystromAverage(Y * torch.nan, Y, Gaussian(1.0))),
        ("landmarks holds NaN", lambda: NystromAverage(Y, Y * torch.inf, Gaussian(1.0))),
        ("x holds NaN", lambda: NystromAverage(Y, Y, Gaussian(1.0)).mean_shift(Y * torch.nan)),
        ("tolerance = 0", lambda: NystromAverage(Y, Y, Gaussian(1.0)).mean_shift(Y, tolerance=0)),
        ("attraction is", lambda: NystromField(Y)),
        ("pos_weights", lambda: NystromField(NystromAverage(Y, Y, Gaussian(1.0)))(Y, Y, pos_weights=Y[:, 0])),
        ("fixed cloud", lambda: NystromField(NystromAverage(Y, Y, Gaussian(1.0))).relative()),
        ("fixed cloud", lambda: NystromField(NystromAverage(Y, Y, Gaussian(1.0))).standardized()),
    ],
)  # fmt: skip
def test_bad_input_is_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()
