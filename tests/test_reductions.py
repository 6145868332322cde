"""Kernel sums: their definition, weights, degenerate clouds, precision. All backends: test_reductions_backends.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import KERNELS, LIGHT, SMOOTH, assert_close, clouds, kernels
from wgflow import Gaussian, epanechnikov, kernel_average, kernel_shift
from wgflow.reductions import dense


def literal_average(x, y, kernel, w):
    """The definition, one pair at a time."""
    mass = torch.zeros(len(x), dtype=x.dtype)
    moment = torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(len(y)):
            k = w[j] * kernel.log((x[i] - y[j]).square().sum()).exp()
            mass[i] += k
            moment[i] += k * y[j]
    return mass.log(), moment / mass[:, None]


@given(clouds(batch=False), kernels())
def test_average_is_its_definition(c, kernel):
    log_mass, barycentre = kernel_average(c.x, c.pos, kernel=kernel, log_weights=c.wp.log())
    expected = literal_average(c.x, c.pos, kernel, c.wp)
    assert_close(log_mass, expected[0])
    assert_close(barycentre, expected[1])


@pytest.mark.parametrize("make", SMOOTH)
def test_second_derivatives_of_dense_are_those_of_finite_differences(make):
    g = torch.Generator().manual_seed(4)
    x, y = (
        torch.randn(3, 2, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    w = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    run = lambda x, y, w: kernel_shift(x, y, kernel=make(0.9), log_weights=w, backend="dense")
    assert torch.autograd.gradgradcheck(run, (x, y, w))


@given(clouds(degenerate=False), kernels(), st.integers(1, 5))
def test_chunks_merge_to_the_whole(c, kernel, cut):
    """(max, sum, weighted sum) is a monoid: sums over parts merge to the sum over the union, in any order."""
    cut = min(cut, c.pos.shape[-2] - 1)
    whole = dense.sum_tile(c.x, c.pos, c.wp.log(), kernel, None)
    left = dense.sum_tile(c.x, c.pos[..., :cut, :], c.wp[..., :cut].log(), kernel, None)
    right = dense.sum_tile(c.x, c.pos[..., cut:, :], c.wp[..., cut:].log(), kernel, None)
    for merged in (dense.merge(left, right), dense.merge(right, left)):
        for a, b in zip(dense.finish(c.x, merged), dense.finish(c.x, whole), strict=True):
            assert_close(a, b)


@given(clouds(), kernels())
def test_a_zero_weight_is_an_absent_sample(c, kernel):
    more = torch.cat([c.pos, c.neg], -2)
    log_w = torch.cat([c.wp, torch.zeros_like(c.wn)], -1).log()
    for a, b in zip(
        kernel_shift(c.x, more, kernel=kernel, log_weights=log_w),
        kernel_shift(c.x, c.pos, kernel=kernel, log_weights=c.wp.log()),
        strict=True,
    ):
        assert_close(a, b)


@given(clouds(), kernels())
def test_an_integer_weight_is_a_repeated_sample(c, kernel):
    repeated = torch.cat([c.pos, c.pos[..., :1, :], c.pos[..., :1, :]], -2)
    log_w = torch.ones_like(c.wp)
    log_w[..., 0] = 3
    for a, b in zip(
        kernel_shift(c.x, c.pos, kernel=kernel, log_weights=log_w.log()),
        kernel_shift(c.x, repeated, kernel=kernel),
        strict=True,
    ):
        assert_close(a, b)


@given(clouds(batch=False, degenerate=False), kernels())
def test_skip_self_is_the_average_over_the_others(c, kernel):
    log_mass, shift = kernel_shift(c.x, c.x, kernel=kernel, skip_self=True)
    for i in range(len(c.x)):
        others = torch.cat([c.x[:i], c.x[i + 1 :]])
        one = kernel_shift(c.x[i : i + 1], others, kernel=kernel)
        assert_close(log_mass[i : i + 1], one[0])
        assert_close(shift[i : i + 1], one[1])


@pytest.mark.parametrize("make", LIGHT)
@pytest.mark.parametrize("distance", [1e3, 1e6])
def test_a_far_point_is_shown_the_nearest_sample(make, distance):
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[distance, 0.0]], dtype=torch.float64, requires_grad=True)
    log_mass, barycentre = kernel_average(x, y, kernel=make(0.05))
    assert log_mass.isfinite().all()
    assert_close(barycentre, y[1:2], atol=1e-6)
    (grad,) = torch.autograd.grad(barycentre.sum() + log_mass.sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("backend", ["dense", "blocked"])
def test_outside_a_compact_kernel_nothing_pulls(backend):
    y = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    x = torch.tensor([[0.1], [30.0]], dtype=torch.float64, requires_grad=True)
    log_mass, shift = kernel_shift(x, y, kernel=epanechnikov(1.0), backend=backend)
    assert log_mass[1] == -math.inf
    assert shift[1] == 0
    assert_close(
        shift[0] + x[0], 0.5 * (1 - 0.16) / ((1 - 0.16) + (1 - 0.01)) * torch.ones(1).double()
    )
    (grad,) = torch.autograd.grad(shift.sum() + log_mass[0], x)
    assert grad.isfinite().all()
    assert grad[1] == 0  # the shift is 0 all around


@pytest.mark.parametrize("backend", ["dense", "blocked", "gemm"])
def test_a_point_that_is_the_only_weighted_sample_itself_has_no_gradient(backend):
    x = torch.tensor([[0.0], [0.7], [1.5]], dtype=torch.float64, requires_grad=True)
    log_w = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
    log_mass, shift = kernel_shift(
        x, x, kernel=Gaussian(1.0), log_weights=log_w, skip_self=True, backend=backend
    )
    assert log_mass[0] == -math.inf
    assert shift[0] == 0
    (grad,) = torch.autograd.grad(shift.sum(), x)
    assert_close(grad, torch.tensor([[2.0], [-1.0], [-1.0]], dtype=torch.float64))


@pytest.mark.parametrize("backend", ["auto", "dense", "blocked", "gemm"])
def test_no_batch_element_is_an_empty_answer(backend):
    log_mass, shift = kernel_shift(
        torch.zeros(1, 3, 2), torch.zeros(0, 5, 2), kernel=Gaussian(1.0), backend=backend
    )
    assert (log_mass.shape, shift.shape) == ((0, 3), (0, 3, 2))


@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("backend", ["dense", "blocked"])
def test_an_offset_costs_float32_only_what_rounding_the_input_costs(offset, backend):
    g = torch.Generator().manual_seed(5)
    x = (torch.randn(40, 3, generator=g) + offset).float()
    y = (torch.randn(50, 3, generator=g) + offset).float()
    single = kernel_shift(x, y, kernel=Gaussian(0.3), backend=backend)
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(0.3))
    assert_close(single[0].double(), exact[0], rtol=1e-6, atol=1e-6)
    assert_close(single[1].double(), exact[1], rtol=1e-6, atol=1e-7)


def test_a_small_step_keeps_its_digits():
    """h = 1e-3 on unit data: the barycentre agrees with x to 3 digits, and the shift is still right to 6."""
    g = torch.Generator().manual_seed(6)
    y = torch.rand(2000, 1, generator=g)
    x = torch.rand(50, 1, generator=g)
    single = kernel_shift(x, y, kernel=Gaussian(1e-3))[1].double()
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(1e-3))[1]
    assert_close(single, exact, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    g = torch.Generator().manual_seed(7)
    x, y = torch.randn(5, 2, generator=g).to(dtype), torch.randn(4000, 2, generator=g).to(dtype)
    log_mass, barycentre = kernel_average(x, y, kernel=Gaussian(1.0))
    exact = kernel_average(x.double(), y.double(), kernel=Gaussian(1.0))
    assert log_mass.dtype == barycentre.dtype == dtype
    assert_close(log_mass, exact[0].to(dtype), rtol=0, atol=0)
    assert_close(barycentre, exact[1].to(dtype), rtol=0, atol=float(torch.finfo(dtype).eps) * 4)


def bad_calls():
    x, k = torch.randn(4, 3), Gaussian(1.0)
    nan = x.clone()
    nan[0, 0] = math.nan
    return [
        ("dimension 2", lambda: kernel_shift(x, torch.randn(5, 2), kernel=k)),
        ("is empty", lambda: kernel_shift(x, x[:0], kernel=k)),
        ("zero", lambda: kernel_shift(x, x, kernel=k, log_weights=torch.full((4,), -math.inf))),
        ("weights are", lambda: kernel_shift(x, x, kernel=k, log_weights=torch.zeros(3))),
        ("do not broadcast", lambda: kernel_shift(x.expand(2, 4, 3), x.expand(5, 4, 3), kernel=k)),
        (
            "of the weights",
            lambda: kernel_shift(x.expand(2, 4, 3), x, kernel=k, log_weights=torch.zeros(5, 4)),
        ),
        ("one floating dtype", lambda: kernel_shift(x, x.double(), kernel=k)),
        ("one floating dtype", lambda: kernel_shift(x.long(), x.long(), kernel=k)),
        ("is on cpu", lambda: kernel_shift(x, x.to("meta"), kernel=k)),
        ("skip_self", lambda: kernel_shift(x, x[:3], kernel=k, skip_self=True)),
        ("at least two", lambda: kernel_shift(x[:1], x[:1], kernel=k, skip_self=True)),
        ("n, D", lambda: kernel_shift(x[0], x, kernel=k)),
        ("NaN", lambda: kernel_shift(nan, x, kernel=k)),
        ("NaN", lambda: kernel_shift(x, nan, kernel=k)),
        ("unknown", lambda: kernel_shift(x, x, kernel=k, backend="magic")),
    ]


@pytest.mark.parametrize(("says", "call"), bad_calls())
def test_bad_input_is_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("h", [0, -1.0, math.nan, math.inf, "wide", None, torch.tensor(0.0)])
@pytest.mark.parametrize("make", KERNELS)
def test_a_bandwidth_is_a_positive_number(make, h):
    with pytest.raises(ValueError, match="length_scale.*positive"):
        make(h)
