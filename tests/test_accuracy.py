"""The promise of a mean shift: its error is below a fraction of the distances it averages, whatever the clouds."""

import math

import pytest
import torch

from tests.strategies import assert_close
from wgflow import KDE, Gaussian, Laplace, Matern, RationalQuadratic, explain_backend, kernel_shift
from wgflow.density import draw_indices
from wgflow.reductions import dispatch, gemm, refine
from wgflow.reductions.dense import exact_centre

KERNELS = (Gaussian, Laplace, lambda h: Matern(h, 2.5), RationalQuadratic)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def never_dense(monkeypatch):
    """`auto` as it is for many points, whatever their number."""
    monkeypatch.setattr(dispatch, "DENSE_IS_FASTEST", ((math.inf, 0),))
    monkeypatch.setattr(dispatch, "DENSE_BEFORE_BLOCKS", 0)


def direct(x, y, kernel, weights=None, skip_self=False):
    """(shift, root mean square distance) of every row from the steps y - x themselves, [N, M, D] of them."""
    steps = y.double().unsqueeze(-3) - x.double().unsqueeze(-2)
    logits = kernel.log(steps.square().sum(-1))
    if weights is not None:
        logits = logits + weights.double().log().unsqueeze(-2)
    if skip_self:
        logits.diagonal(0, -2, -1).fill_(-math.inf)
    W = logits.softmax(-1).unsqueeze(-1)
    return (W * steps).sum(-2), (W * steps.square()).sum((-2, -1)).sqrt()


def clusters(n, dim, spread, seed):
    """Two clusters at ±(1, ..., 1), in float32."""
    signs = torch.arange(n).remainder(2).mul(2).sub(1).unsqueeze(-1)
    return (signs + spread * randn(n, dim, seed=seed)).float()


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("skip_self", [False, True])
def test_tight_clusters_far_apart_keep_the_promise(never_dense, make, spread, skip_self):
    x, kernel = clusters(60, 2, spread, seed=1), make(0.1)
    y = x if skip_self else clusters(60, 2, spread, seed=2)
    found = kernel_shift(x, y, kernel=kernel, skip_self=skip_self)[1]
    exact, rms = direct(x, y, kernel, skip_self=skip_self)
    promised = explain_backend(x, y, kernel=kernel).error or 0.0
    error = (found.double() - exact).norm(dim=-1)
    assert promised < 1e-3
    assert (error <= promised * rms + 2**-22 * exact.norm(dim=-1)).all()


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("lead", [(), (4,)])
@pytest.mark.parametrize("skip_self", [False, True])
def test_a_few_close_points_among_many_wide_ones_are_refined(never_dense, make, lead, skip_self):
    """Two pairs 1e-6 apart in the first cloud of a batch: their rows alone, values and gradients."""
    x = randn(*lead, 40, 2)
    first = x[(0,) * len(lead)] if lead else x
    first[5], first[30] = 20 + 1e-6 * first[6], 20 + 1e-6 * first[8]
    first[9], first[11] = -20 + 1e-6 * first[6], -20 + 1e-6 * first[8]
    x, kernel = x.float(), make(3.0)
    at = [t.clone().requires_grad_() for t in (x, x)]
    exact = [t.double().requires_grad_() for t in (x, x)]
    how = {"kernel": kernel, "skip_self": skip_self}
    assert explain_backend(*at, **how).dtype == torch.float32
    found = kernel_shift(*at, **how)
    dense = kernel_shift(*exact, **how, backend="dense")
    rms = direct(x, x, **how)[1]
    error = (found[1].double() - dense[1]).norm(dim=-1)
    assert (error <= 1e-3 * rms + 1e-15 * 40).all()
    up = [randn(*o.shape, seed=7) for o in dense]
    grads = torch.autograd.grad(found, at, [u.float() for u in up])
    expected = torch.autograd.grad(dense, exact, up)
    for a, b in zip(grads, expected, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("far", [100, 350, 5000])
def test_a_row_that_one_sample_dominates_keeps_the_weaker_promise(never_dense, make, far):
    """Float32 adds hundreds of weights just below half an eps to 1 without a trace: docs/backends.md."""
    y = torch.cat([torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]).repeat(far, 1)]).double()
    y = (y + 1e-3 * randn(far + 1, 2) * (y.sum(-1, keepdim=True) > 0)).float()
    low, high = 1e-3, 10.0
    for _ in range(60):  # the length scale at which a far sample weighs 5e-8
        middle = math.sqrt(low * high)
        weight = float(make(middle).log(torch.ones(1, dtype=torch.float64)).exp())
        low, high = (middle, high) if weight < 5e-8 else (low, middle)
    x, kernel = torch.zeros(40, 2), make(low)
    found = kernel_shift(x, y, kernel=kernel)[1]
    exact, rms = direct(x, y, kernel)
    assert ((found.double() - exact).norm(dim=-1) <= 5e-3 * rms).all()


def test_rows_that_are_refined_are_the_imprecise_ones_alone(never_dense, monkeypatch):
    refined = []
    original = refine.refine
    monkeypatch.setattr(
        "wgflow.reductions.autograd.refine",
        lambda *a: (refined.append(int(a[5].sum())), original(*a)),
    )
    x, y = randn(200, 2).float(), randn(200, 2, seed=2).float()
    for kernel in (Gaussian(0.5), Laplace(0.5)):
        kernel_shift(x, y, kernel=kernel)
    assert refined == []
    y[:5] = x[:5] = 30.0
    y[0] += 1e-5
    kernel_shift(x, y, kernel=Gaussian(3.0))
    assert refined == [5]


@pytest.mark.parametrize("make", [Laplace, lambda h: Matern(h, 2.5)])
def test_scores_of_tight_clusters_keep_the_promise(never_dense, make):
    x, y = (clusters(60, 2, 1e-5, seed=s) for s in (1, 2))
    found = KDE(y, make(0.1)).score(x)
    exact = KDE(y.double(), make(0.1)).score(x.double())
    assert ((found - exact).norm(dim=-1) < 1e-3 * exact.norm(dim=-1).mean()).all()


@pytest.mark.parametrize("dim", [512, 3072])
def test_the_stated_error_of_weights_grows_with_the_dimension(never_dense, dim):
    for x, y in (
        (randn(20, dim).float(), randn(30, dim, seed=2).float()),
        (clusters(20, dim, 1e-3, seed=3), clusters(30, dim, 1e-3, seed=4)),
    ):
        kernel = Gaussian(0.2 * (2 * dim) ** 0.5)
        said = explain_backend(x, y, kernel=kernel)
        assert said.dtype == torch.float32
        log_mass = kernel_shift(x, y, kernel=kernel)[0].double()
        exact = kernel_shift(x.double(), y.double(), kernel=kernel, backend="dense")[0]
        promised = (said.error - dispatch.SHORTEST[torch.float32]) / 2
        assert (log_mass - exact).abs().max() < promised + 2**-24 * exact.abs().max()


@pytest.mark.parametrize("backend", ["auto", "dense", "blocked"])
@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("make", KERNELS[:3])
def test_one_sample_at_1e18_changes_nothing_near(backend, weight, make):
    y = torch.tensor([[0.0], [1.0], [2.0], [1e18]], dtype=torch.float64)
    x = torch.tensor([[0.3], [2.5]], dtype=torch.float64, requires_grad=True)
    log_w = torch.tensor([1.0, 1.0, 1.0, weight], dtype=torch.float64).log()
    how = {"kernel": make(1.0), "backend": backend}
    found = kernel_shift(x, y, log_weights=log_w, **how)
    near = kernel_shift(x, y[:3], **how)
    for a, b in zip(found, near, strict=True):
        assert_close(a, b, rtol=1e-14, atol=0)
    grads = [torch.autograd.grad(o[1].sum(), x)[0] for o in (found, near)]
    assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["dense", "blocked"])
@pytest.mark.parametrize("far", [1e9, 1e18])
def test_points_near_zero_keep_their_digits_whatever_else_there_is(backend, far):
    """Most samples far away in one direction, and a few at 0, 1e-9 apart."""
    y = torch.cat([far + randn(20, 2), 1e-9 * randn(3, 2, seed=2)])
    x = 1e-9 * randn(4, 2, seed=3)
    found = kernel_shift(x, y, kernel=Gaussian(1.0), backend=backend)[1]
    assert_close(found, direct(x, y[20:], Gaussian(1.0))[0], rtol=1e-6, atol=1e-20)


def test_the_centre_of_a_cloud_makes_no_rounding_errors():
    """y - c is exact for every sample, in the dtype of y (Sterbenz): c + (y - c) = y and c is 0 or near all of y."""
    for offset, dtype in ((0.0, torch.float64), (1e3, torch.float32), (-1e6, torch.float64)):
        y = (randn(50, 3) + offset).to(dtype)
        c = exact_centre(y, None)
        assert ((c == 0) if offset == 0 else (c - offset).abs() < 3).all()
        assert torch.equal((y - c).double(), y.double() - c.double())
    log_w = torch.zeros(51, dtype=dtype)
    log_w[-1] = -math.inf
    far = torch.cat([y, torch.full((1, 3), 1e18, dtype=dtype)])
    assert torch.equal(exact_centre(far, log_w), c)
    assert (exact_centre(far, None) == 0).all()


def test_the_mean_square_distance_of_gemm_is_that_of_the_pairs():
    x, y, w = randn(30, 3), randn(40, 3, seed=2), randn(40, seed=3).exp()
    spread = gemm.forward(x, y, w.log(), Gaussian(0.7), False, torch.float64)[2]
    assert_close(spread.sqrt(), direct(x, y, Gaussian(0.7), weights=w)[1])


def test_shares_of_draws_are_right_where_float32_sums_are_not():
    """Half of the mass in 2^20 tiny weights after one large weight that swallows each of them in float32."""
    n = 1 << 20
    w = torch.full((n + 1,), 2.0**-25)
    w[0] = n * 2.0**-25
    y = torch.ones(n + 1, 1)
    y[0] = -1
    kde = KDE(y, Gaussian(1e-3), w)
    drawn = kde.sample(4000, generator=torch.Generator().manual_seed(0))
    assert abs(float((drawn > 0).float().mean()) - 0.5) < 4 * 0.5 / 4000**0.5


def test_more_samples_than_2_to_the_24_can_be_drawn_from():
    n = (1 << 24) + 2
    w = torch.zeros(n)
    w[-1] = w[5] = 1.0
    drawn = draw_indices(w.unsqueeze(0), 100, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) == {5, n - 1}


def test_samples_of_weight_0_are_never_drawn():
    w = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    y = torch.arange(5.0).view(5, 1).expand(2, 5, 1)
    drawn = KDE(y, Gaussian(1e-6), w).sample(3000, generator=torch.Generator().manual_seed(0))
    assert set(drawn[0].round().flatten().tolist()) == {1.0, 3.0}
    assert (drawn[1].round() == 0).all()
    assert abs(float((drawn[0].round() == 3).float().mean()) - 2 / 3) < 0.05
