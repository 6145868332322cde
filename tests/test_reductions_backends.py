"""Every backend is the dense sum: values, gradients, degenerate clouds, precision, and what a call leaves untouched."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import COMPACT, HEAVY, LIGHT, assert_close, clouds
from wgflow import Gaussian, Laplace, RationalQuadratic, explain_backend, kernel_shift
from wgflow.kernels import Riesz
from wgflow.reductions import autograd, blocked, dispatch, gemm

AGAINST_DENSE = [("blocked", make) for make in (*LIGHT, *HEAVY, *COMPACT)] + [("gemm", Gaussian)]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(blocked, "TILE_BYTES", 8 * 7)
    monkeypatch.setattr(gemm, "TILE_BYTES", 100)
    monkeypatch.setattr(gemm, "MIN_COLUMNS", 2)
    monkeypatch.setattr(gemm, "CHUNK", 3)
    monkeypatch.setattr(gemm, "TILES_PER_SUM", 2)


@pytest.fixture
def never_dense(monkeypatch):
    """`auto` as it is for many points, whatever their number."""
    monkeypatch.setattr(dispatch, "DENSE_IS_FASTEST", ((math.inf, 0),))
    monkeypatch.setattr(dispatch, "DENSE_BEFORE_BLOCKS", 0)


def value_and_gradients(x, y, log_w, *, kernel, skip_self=False, backend):
    args = [t.clone().requires_grad_() for t in (x, y) + (() if log_w is None else (log_w,))]
    weights = None if log_w is None else args[2]
    out = kernel_shift(
        args[0], args[1], kernel=kernel, log_weights=weights, skip_self=skip_self, backend=backend
    )
    up = [
        torch.randn(o.shape, generator=torch.Generator().manual_seed(2), dtype=o.dtype) for o in out
    ]
    return [*out, *torch.autograd.grad(out, args, up)]


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(clouds(), st.booleans())
def test_gemm_is_the_dense_sum(c, weighted):
    log_w = c.wp.log() if weighted else None
    found = value_and_gradients(c.x, c.pos, log_w, kernel=Gaussian(c.h), backend="gemm")
    dense = value_and_gradients(c.x, c.pos, log_w, kernel=Gaussian(c.h), backend="dense")
    for a, b in zip(found, dense, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9 * c.scale)


@pytest.mark.parametrize(("backend", "make"), AGAINST_DENSE)
@pytest.mark.parametrize("weights", ["none", "shared", "own"])
@pytest.mark.parametrize("lead", [(), (3,), (3, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_any_shape_sum_to_the_dense_one(
    small_tiles, backend, make, weights, lead, shared
):
    x, y = randn(*lead, 5, 3), randn(*((1,) * len(lead) if shared else lead), 6, 3, seed=2)
    log_w = {"none": None, "shared": randn(6, seed=3), "own": randn(*lead, 6, seed=4)}[weights]
    if log_w is not None:
        log_w[..., 2] = -math.inf
    results = [
        value_and_gradients(x, y, log_w, kernel=make(0.8), backend=b) for b in ("dense", backend)
    ]
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("backend", "make"), [case for case in AGAINST_DENSE if case[1] not in COMPACT]
)
@pytest.mark.parametrize("lead", [(), (40,)])
def test_a_points_own_sample_is_left_out_by_every_backend(backend, make, lead):
    x = randn(*lead, 9, 2)
    results = [
        value_and_gradients(x, x, None, kernel=make(0.5), skip_self=True, backend=b)
        for b in ("dense", backend)
    ]
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-10, atol=1e-10)


CHECKED = [*LIGHT[:1], *LIGHT[2:], HEAVY[0], COMPACT[2]]


@pytest.mark.parametrize(
    ("backend", "make"),
    [*((b, make) for b in ("dense", "blocked") for make in CHECKED), ("gemm", Gaussian)],
)
def test_gradients_are_those_of_finite_differences(small_tiles, backend, make):
    g = torch.Generator().manual_seed(3)
    args = [
        torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 2), (1, 4, 2), (2, 4))
    ]
    for skip_self in (False, True):
        run = lambda x, y, w, s=skip_self: kernel_shift(
            x, y, kernel=make(0.9), log_weights=w, skip_self=s, backend=backend
        )
        assert torch.autograd.gradcheck(run, args)


@pytest.mark.parametrize("make", [Gaussian, LIGHT[1]])
def test_auto_has_second_derivatives_whatever_it_chose(never_dense, make):
    x, y = randn(3, 2).requires_grad_(), randn(3, 2, seed=2).requires_grad_()
    assert explain_backend(x, y, kernel=make(0.9)).backend != "dense"
    assert torch.autograd.gradgradcheck(lambda x, y: kernel_shift(x, y, kernel=make(0.9)), (x, y))


@pytest.mark.parametrize("kernel", [Gaussian(0.9), HEAVY[0](0.9), Riesz(1.0)])
def test_gradients_with_a_graph_are_those_without_wherever_the_cloud_is(never_dense, kernel):
    x, y = ((randn(40, 3, seed=s) + 2.0**20).requires_grad_() for s in (1, 2))
    out = kernel_shift(x, y, kernel=kernel)[1].square().sum()
    plain = torch.autograd.grad(out, (x, y), retain_graph=True)
    for a, b in zip(plain, torch.autograd.grad(out, (x, y), create_graph=True), strict=True):
        assert (a - b).norm() < 1e-12 * a.norm()


@pytest.mark.parametrize("backend", ["blocked", "gemm"])
def test_a_second_derivative_by_name_is_refused(backend):
    x = randn(3, 2).requires_grad_()
    log_mass, _ = kernel_shift(x, x.detach(), kernel=Gaussian(1.0), backend=backend)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(log_mass.sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_whose_nearest_sample_was_not_looked_at_is_still_right(monkeypatch, dtype):
    """Two clusters 40 bandwidths apart; the few samples that give the reference exponents are all of one of them."""
    monkeypatch.setattr(gemm, "SAMPLE", 2)
    y = randn(4, 2)
    y[1::2] += 40
    x = randn(6, 2, seed=2)
    x[3:] += 40
    x, y = x.to(dtype), y.to(dtype)
    found = kernel_shift(x, y, kernel=Gaussian(1.0), backend="gemm")
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(1.0))
    tol = 1e-4 if dtype == torch.float32 else 1e-9
    for a, b in zip(found, exact, strict=True):
        assert_close(a.double(), b, rtol=tol, atol=tol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_fit_into_floats_only_without_their_coordinate_are_right(dtype):
    """A pair far from the samples that are looked at first: the mass is just a float, mass times place is not."""
    highest = math.log2(torch.finfo(dtype).max)
    for exponent in (
        torch.linspace(0.55, 0.65, 200) * highest
    ):  # by how much the unseen neighbour is heavier
        far = math.sqrt(2 * math.log(2) * exponent)
        y = 0.01 * randn(300, 2)
        y[1:3] += torch.tensor([far, 0.0])  # of 300, every fifth is looked at
        found = gemm.forward(y.to(dtype), y.to(dtype), None, Gaussian(1.0), True, dtype)[:2]
        exact = kernel_shift(y.to(dtype).double(), y.to(dtype).double(), kernel=Gaussian(1.0), skip_self=True,
                             backend="dense")  # fmt: skip
        for a, b in zip(found, exact, strict=True):
            assert_close(a, b, rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 1e-9)


def test_a_point_whose_only_neighbour_is_itself_is_shown_the_next_one():
    x = torch.arange(6, dtype=torch.float64).unsqueeze(-1) * 100
    found = kernel_shift(x, x, kernel=Gaussian(0.5), skip_self=True, backend="gemm")
    exact = kernel_shift(x, x, kernel=Gaussian(0.5), skip_self=True, backend="dense")
    for a, b in zip(found, exact, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("make", [Gaussian, Laplace, LIGHT[1], HEAVY[0]])
def test_float32_through_auto_is_right_to_1e3_wherever_the_cloud_is(never_dense, offset, make):
    x, y = (randn(300, 3, seed=s) + offset for s in (1, 2))
    x, y = x.float().requires_grad_(), y.float()
    assert explain_backend(x, y, kernel=make(0.5)).dtype == torch.float32
    single = kernel_shift(x, y, kernel=make(0.5))
    at = x.detach().double().requires_grad_()
    exact = kernel_shift(at, y.double(), kernel=make(0.5), backend="dense")
    for a, b in zip(single, exact, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()
    grads = [torch.autograd.grad(o[1].square().sum(), p)[0] for o, p in ((single, x), (exact, at))]
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm()


@given(st.floats(1e-4, 1.0), st.sampled_from([1, 2, 8]), st.sampled_from(["auto", "gemm"]))
def test_a_field_errs_by_less_than_1e3_or_says_so(h, dim, backend):
    x, y = (torch.rand(300, dim, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = kernel_shift(x, y, kernel=Gaussian(h), backend=backend)[1].double()
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(h), backend="dense")[1]
    assert said or (found - exact).norm() < 1e-3 * exact.norm()


def test_gemm_by_name_warns_where_even_float64_is_not_enough():
    x, y = randn(50, 2), randn(50, 2, seed=2)
    with pytest.warns(UserWarning, match="direct differences"):
        kernel_shift(x, y, kernel=Gaussian(1e-7), backend="gemm")
    said = explain_backend(x.repeat(20, 1), y.repeat(20, 1), kernel=Gaussian(1e-7))
    assert said.backend == "blocked" and said.reason.startswith("direct differences")


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_a_far_point_is_shown_the_nearest_sample_by_gemm_too(never_dense, far):
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[far, 0.0], [0.1, 0.1]], requires_grad=True)
    log_mass, shift = kernel_shift(x, y, kernel=Gaussian(0.05))
    assert log_mass.isfinite().all()
    assert_close(shift[0], y[1] - x[0], rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(shift.sum() + log_mass.sum(), x)
    assert grad.isfinite().all()


def test_float64_input_stays_exact(never_dense):
    x, y = randn(400, 3), randn(500, 3, seed=2)
    for h in (1e-4, 1e-2, 1.0):
        exact = kernel_shift(x, y, kernel=Gaussian(h), backend="dense")
        for a, b in zip(kernel_shift(x, y, kernel=Gaussian(h)), exact, strict=True):
            assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full_by_gemm(never_dense, dtype):
    x, y = randn(50, 2).to(dtype), randn(4000, 2, seed=2).to(dtype)
    log_mass, shift = kernel_shift(x, y, kernel=Gaussian(1.0))
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(1.0))
    assert log_mass.dtype == shift.dtype == dtype
    for a, b in zip((log_mass, shift), exact, strict=True):
        assert_close(a.double(), b, rtol=float(torch.finfo(dtype).eps), atol=1e-4)


@pytest.mark.parametrize("backend", ["blocked", "gemm"])
def test_memory_is_linear(backend):
    """No tensor of N x M pairs is ever made, forward or backward."""
    n, seen = 3000, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(
                t.numel()
                for t in (out if isinstance(out, tuple) else (out,))
                if isinstance(t, torch.Tensor)
            )
            return out

    x, y = randn(n, 2).float().requires_grad_(), randn(n, 2, seed=2).float()
    with Watch():
        log_mass, _ = kernel_shift(x, y, kernel=Gaussian(1.0), backend=backend)
        log_mass.sum().backward()
    most = {
        "blocked": max(blocked.TILE_BYTES // 8, 4 * n),
        "gemm": max(gemm.TILE_BYTES // 4, gemm.SAMPLE * 1024, 8 * n),
    }
    assert max(seen) <= most[backend]


def test_a_call_changes_no_global_state(never_dense):
    def state():
        return (
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    x = randn(300, 2).float().requires_grad_()
    for backend in ("auto", "gemm", "blocked", "dense"):
        kernel_shift(x, x.detach(), kernel=Gaussian(1.0), backend=backend)[1].sum().backward()
    assert state() == before


def test_no_setting_of_torch_makes_the_sums_coarse(never_dense):
    x, y = randn(300, 2).float(), randn(300, 2, seed=2).float()
    exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(0.3))[1]
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert (kernel_shift(x, y, kernel=Gaussian(0.3))[1] - exact).norm() < 1e-5 * exact.norm()
        # Blocks multiply matrices too, and not every machine rounds their factors: so by the choice, not the sum.
        assert explain_backend(x, y, kernel=Laplace(0.3)).dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(precision)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (kernel_shift(x, y, kernel=Gaussian(0.3))[1] - exact).norm() < 1e-5 * exact.norm()


def test_an_explanation_says_what_happens(never_dense, monkeypatch):
    x, y = randn(30, 2).float(), randn(40, 2, seed=2).float()
    ran = []
    for name, run in list(autograd.FORWARD.items()):
        monkeypatch.setitem(
            autograd.FORWARD, name, lambda *a, r=run, n=name: (ran.append((n, a[-1])), r(*a))[1]
        )
    for kernel in (Gaussian(0.5), Gaussian(1e-3), Laplace(0.5), COMPACT[0](0.5)):
        said = explain_backend(x, y, kernel=kernel)
        kernel_shift(x, y, kernel=kernel)
        if said.backend != "dense":
            assert (said.backend, said.dtype) == ran[-1]
        assert said.backend in str(said)
        with pytest.raises(AttributeError):
            said.backend = "other"  # type: ignore[misc]


@pytest.mark.parametrize("kernel", [Laplace(1.0), RationalQuadratic(1.0, 2.0)])
def test_the_size_of_log_weights_counts_in_the_error_of_blocks(never_dense, kernel):
    """A common factor of all weights changes no shift, but float32 has no digits left beside a large one."""
    x, y, log_w = (
        randn(*shape, seed=s).float() for shape, s in (((300, 2), 1), ((300, 2), 2), ((300,), 3))
    )
    for log_weights in (log_w + 1e6, torch.where(log_w < 0, -math.inf, log_w - 1e6)):
        found = kernel_shift(x, y, kernel=kernel, log_weights=log_weights)[1]
        exact = kernel_shift(
            x.double(), y.double(), kernel=kernel, log_weights=log_weights.double()
        )[1]
        assert (found - exact).norm() < 1e-5 * exact.norm()
    assert explain_backend(x, y, kernel=kernel, log_weights=log_w).dtype == torch.float32


def test_a_narrow_power_law_keeps_the_digits_of_small_steps(never_dense):
    y = torch.rand(600, 2, generator=torch.Generator().manual_seed(1))
    x, kernel = y + 1e-6 * randn(600, 2).float(), RationalQuadratic(1e-4, 4.0)
    found = kernel_shift(x, y, kernel=kernel)[1]
    exact = kernel_shift(x.double(), y.double(), kernel=kernel)[1]
    assert (found - exact).norm() < 1e-5 * exact.norm()


def test_the_size_of_half_precision_clouds_is_measured_in_full():
    x = (300 * randn(600, 2)).half()  # |x|² is beyond half precision
    assert explain_backend(x, x, kernel=Gaussian(300.0)).dtype == torch.float32


def test_few_pairs_are_dense_in_float64():
    x = randn(128, 8, 10).float()
    said = explain_backend(x, x, kernel=Gaussian(0.5))
    assert (said.backend, said.dtype, said.error) == ("dense", torch.float64, None)


def test_many_pairs_by_direct_differences_are_summed_in_blocks():
    """Float64 without an estimate of errors: dense up to a tile, blocks beyond, with a second derivative as before."""
    x = randn(363, 2).requires_grad_()
    few, many = (explain_backend(x[:n], x, kernel=Riesz(1.0)) for n in (361, 363))
    assert (few.backend, many.backend, many.dtype) == ("dense", "blocked", torch.float64)
    (first,) = torch.autograd.grad(
        kernel_shift(x, x.detach(), kernel=Riesz(1.0))[1].sum(), x, create_graph=True
    )
    assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()


def test_gemm_refuses_what_is_not_gaussian():
    with pytest.raises(ValueError, match="Gaussian kernels only"):
        kernel_shift(randn(3, 2), randn(3, 2), kernel=Laplace(1.0), backend="gemm")


@pytest.mark.parametrize("n", [600, 601])
@pytest.mark.parametrize("skip_self", [False, True])
def test_gemm_does_not_depend_on_the_number_of_threads(n, skip_self):
    x, before = (
        torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.get_num_threads(),
    )
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(
                kernel_shift(x, x, kernel=Gaussian(0.5), skip_self=skip_self, backend="gemm")
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_close(a, b, rtol=1e-11, atol=1e-12)
