"""Tensors as length scales: the same laws in coordinates divided by them, and gradients to them."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import (
    COMPACT,
    KERNELS,
    LIGHT,
    SHIFTS,
    SMOOTH,
    Clouds,
    assert_close,
    clouds,
    kernels,
    scaled,
)
from wgflow import (
    KDE,
    MMD,
    BlobKL,
    ForwardKL,
    Gaussian,
    Interaction,
    Laplace,
    Matern,
    RationalQuadratic,
    bounds,
    drifting_field,
    explain_backend,
    kernel_shift,
    likelihood_field,
    mean_shift,
    mmd2,
    mmd_field,
    per_dimension,
    scott,
    silverman,
    stein_field,
)


def lengths_for(c: Clouds, kind: str) -> torch.Tensor:
    """[D], [..., 1, D] or [..., 1, 1] random lengths for these clouds."""
    lead, d = c.x.shape[:-2], c.x.shape[-1]
    shape = {"dimension": (d,), "both": (*lead, 1, d), "element": (*lead, 1, 1)}[kind]
    return 0.5 + 2 * torch.rand(shape, generator=c.generator, dtype=torch.float64)


kinds = st.sampled_from(["dimension", "both", "element"])


@pytest.mark.parametrize("name", SHIFTS)
@settings(max_examples=15)
@given(c=clouds(), kind=kinds, kernel=kernels((*KERNELS, *COMPACT)))
def test_a_rescaled_field_is_the_plain_one_in_divided_coordinates(name, c, kind, kernel):
    L = lengths_for(c, kind)
    rescaled = SHIFTS[name](c.x, c.pos, c.neg, scaled(kernel, L))
    plain = SHIFTS[name](c.x / L, c.pos / L, c.neg / L, kernel)
    assert_close(rescaled, L * plain, rtol=1e-8, atol=1e-8 * c.scale)


@given(c=clouds(), kind=kinds)
def test_rescaled_drift_is_the_matrix_h_times_the_score_difference(c, kind):
    """V = H (∇log p_h - ∇log q_h), H = diag(h² lengths²), the scores by autograd from the log densities."""
    L = lengths_for(c, kind)
    k, x = scaled(Gaussian(1 + c.h), L), c.x.requires_grad_()
    gap = KDE(c.pos, k, c.wp).log_density(x) - KDE(c.neg, k, c.wn).log_density(x)
    (grad,) = torch.autograd.grad(gap.sum(), x)
    V = drifting_field(x, c.pos, c.neg, kernel=k, pos_weights=c.wp, neg_weights=c.wn).detach()
    assert_close(V, ((1 + c.h) * L) ** 2 * grad, atol=1e-8 * c.scale)


@given(c=clouds(degenerate=False), kind=kinds, kernel=kernels(SMOOTH))
def test_score_and_hessian_of_a_rescaled_kde_are_its_derivatives(c, kind, kernel):
    kde = KDE(c.pos, scaled(kernel, lengths_for(c, kind)), c.wp)
    x, eps, v = c.x.requires_grad_(), 1e-5, c.rand(*c.x.shape)
    (score,) = torch.autograd.grad(
        kernel_shift(x, c.pos, kernel=kde.kernel, log_weights=c.wp.log())[0].sum(), x
    )
    x = x.detach()
    assert_close(kde.score(x), score, rtol=1e-8)
    along = (kde.score(x + eps * v) - kde.score(x - eps * v)) / (2 * eps)
    assert_close((kde.hessian(x) @ v.unsqueeze(-1)).squeeze(-1), along, rtol=1e-4, atol=1e-6)


@given(c=clouds(), kernel=kernels(LIGHT))
def test_an_element_of_a_batch_is_its_own_run(c, kernel):
    """Lengths [..., 1, 1]: element i is the run with the one bandwidth that is meant for it."""
    x, pos = (torch.stack([t.reshape(-1, *t.shape[-2:])[0]] * 3) for t in (c.x, c.pos))
    h = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    V = mean_shift(x, pos, kernel=scaled(Gaussian(c.h), h[:, None, None]))
    density = KDE(pos, scaled(Gaussian(c.h), h[:, None, None])).log_density(x)
    for i in range(3):
        one = Gaussian(c.h * h[i].item())
        assert_close(V[i], mean_shift(x[i], pos[i], kernel=one))
        assert_close(density[i], KDE(pos[i], one).log_density(x[i]))


@given(c=clouds(dim=2, degenerate=False), kernel=kernels(SMOOTH), kind=kinds)
def test_exact_gradient_fields_stay_exact_when_rescaled(c, kernel, kind):
    k, x = scaled(kernel, lengths_for(c, kind)), c.x.requires_grad_()
    for F in (MMD(c.pos, k), Interaction(k), BlobKL(KDE(c.pos, k), k)):
        (grad,) = torch.autograd.grad(F.value(x).sum(), x)
        assert_close(F.velocity(x).detach(), -F.factor * x.shape[-2] * grad, rtol=1e-7, atol=1e-8)


@given(c=clouds(degenerate=False), kernel=kernels(SMOOTH), kind=kinds)
def test_covectors_turn_back_into_vectors(c, kernel, kind):
    """MMD² and Stein's field of rescaled kernels against the plain ones on divided data."""
    L = lengths_for(c, kind)
    k = scaled(kernel, L)
    assert_close(mmd2(c.x, c.pos, kernel=k), mmd2(c.x / L, c.pos / L, kernel=kernel))
    assert_close(mmd_field(c.x, c.pos, kernel=k), mmd_field(c.x / L, c.pos / L, kernel=kernel) / L)
    pushed = stein_field(c.x, torch.zeros_like, kernel=k)
    assert_close(pushed, stein_field(c.x / L, torch.zeros_like, kernel=kernel) / L)
    # k score: a sum of scores, covectors both.
    assert_close(
        KDE(c.pos, k).responsibilities(c.x), KDE(c.pos / L, kernel).responsibilities(c.x / L)
    )


@pytest.mark.parametrize("make", KERNELS)
def test_a_rescaled_density_has_the_mass_of_its_kernel(make):
    """A change of variables: log_norm loses Σ log lengths, whatever shape the lengths have."""
    kernel, L = make(0.7), torch.tensor([0.5, 3.0, 1.2], dtype=torch.float64)
    norm = kernel.log_norm(3)
    for lengths in (L, L[None], L.expand(4, 1, 3)):
        found = scaled(kernel, lengths).log_norm(3)
        if norm is None:
            assert found is None
        else:
            assert_close(found, torch.full_like(found, norm - L.log().sum().item()))
    if norm is not None:
        equal = scaled(kernel, torch.tensor([2.0], dtype=torch.float64)).log_norm(3)
        assert_close(equal, torch.full_like(equal, norm - 3 * math.log(2)))


def test_samples_of_a_rescaled_kde_are_rescaled():
    g = torch.Generator().manual_seed(0)
    y = torch.zeros(2, 1, 2, dtype=torch.float64)
    L = torch.tensor([[[1.0, 3.0]], [[0.5, 0.2]]], dtype=torch.float64)
    draws = KDE(y, scaled(Gaussian(0.5), L)).sample(20_000, generator=g)
    assert_close(draws.std(1), 0.5 * L[:, 0], rtol=0.03)


def test_samples_have_the_batch_of_the_density_and_are_independent():
    """Samples, weights and length scale broadcast against each other; no draw is repeated along the batch."""
    y = torch.zeros(4, 2, dtype=torch.float64)
    lengths, weights = torch.full((3, 1, 1), 0.5), torch.ones(3, 4, dtype=torch.float64)
    for kde in (KDE(y, Gaussian(lengths)), KDE(y, Gaussian(0.5), weights)):
        draws = kde.sample(5000, generator=torch.Generator().manual_seed(0))
        assert draws.shape == (3, 5000, 2)
        assert kde.log_density(y).shape == (3, 4)
        columns = draws.transpose(1, 2).flatten(0, 1)
        assert_close(
            torch.cov(columns), 0.25 * torch.eye(6, dtype=torch.float64), rtol=0, atol=0.03
        )


@given(c=clouds(degenerate=False), kernel=kernels((*SMOOTH, *COMPACT)))
def test_a_rescaled_mean_shift_climbs_the_rescaled_shadow(c, kernel):
    k = scaled(kernel, lengths_for(c, "dimension"))
    log_k, shift = kernel_shift(c.x, c.pos, kernel=k)
    log_H, _ = kernel_shift(c.x, c.pos, kernel=k.shadow)
    climbed = k.shadow_scale * (log_H - log_k).exp().unsqueeze(-1) * KDE(c.pos, k.shadow).score(c.x)
    assert_close(shift, climbed, rtol=1e-8, atol=1e-8)


def test_gradients_reach_the_lengths():
    g = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(2, 3, 2, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    L = (0.5 + torch.rand(2, 1, 2, generator=g, dtype=torch.float64)).requires_grad_()
    for backend in ("dense", "blocked"):
        run = lambda x, y, L, b=backend: kernel_shift(x, y, kernel=Gaussian(0.9 * L), backend=b)
        assert torch.autograd.gradcheck(run, (x, y, L))
    density = lambda x, L: KDE(y.detach(), Gaussian(0.9 * L)).log_density(x)
    assert torch.autograd.gradcheck(density, (x, L))


@given(c=clouds(degenerate=False), kind=kinds)
def test_every_backend_sums_rescaled_kernels_alike(c, kind):
    k = scaled(Gaussian(c.h), lengths_for(c, kind))
    dense = kernel_shift(c.x, c.pos, kernel=k, log_weights=c.wp.log(), backend="dense")
    for backend in ("blocked", "gemm"):
        for a, b in zip(
            kernel_shift(c.x, c.pos, kernel=k, log_weights=c.wp.log(), backend=backend),
            dense,
            strict=True,
        ):
            assert_close(a, b, rtol=1e-8, atol=1e-8)
    said = explain_backend(c.x, c.pos, kernel=k, backend="gemm")
    assert said.backend == "gemm"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_results_keep_the_dtype_of_the_points(dtype):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    k = Gaussian([0.5, 1.0])
    for out in (
        *kernel_shift(x, x, kernel=k),
        KDE(x, k).log_density(x),
        KDE(x, k).score(x),
        drifting_field(x, x, x, kernel=k),
    ):
        assert out.dtype == dtype


@pytest.mark.parametrize("rule", [scott, silverman])
@settings(max_examples=15)
@given(c=clouds(batch=False, degenerate=False))
def test_a_bandwidth_per_dimension_has_the_units_of_its_dimension(rule, c):
    y = torch.cat([c.pos, c.neg])
    units = lengths_for(c, "dimension")
    kernel, changed = per_dimension(y, rule=rule), per_dimension(units * y, rule=rule)
    assert_close(changed.length_scale, units * kernel.length_scale)
    exponent, dim = -1 / (y.shape[-1] + 4), y.shape[-1]
    factor = len(y) ** exponent if rule is scott else (len(y) * (dim + 2) / 4) ** exponent
    assert_close(kernel.length_scale, factor * y.std(-2, keepdim=True))
    both = per_dimension(torch.stack([y, 3 * y]), rule=rule)
    assert_close(both.length_scale, torch.stack([kernel.length_scale, 3 * kernel.length_scale]))


def test_a_kernel_with_a_tensor_is_a_value():
    a, b = (Matern([1.0, 2.0], 2.5) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == "Matern(length_scale=tensor[2], nu=2.5)"
    others = (Matern([1.0, 3.0], 2.5), Matern([1.0, 2.0]), Matern(1.0, 2.5), Gaussian([1.0, 2.0]))
    assert a not in others
    assert pickle.loads(pickle.dumps(a)) == a


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.array(0.5)])
def test_numbers_of_numpy_are_numbers(number):
    assert Gaussian(number) == Gaussian(0.5)
    assert type(Gaussian(number).length_scale) is float
    assert Gaussian(2) == Gaussian(2.0)


@given(c=clouds(), kernel=kernels((*KERNELS, *COMPACT)))
def test_a_tensor_of_one_number_is_that_number(c, kernel):
    tensor = scaled(kernel, torch.tensor(1.0, dtype=torch.float64))
    for a, b in zip(
        kernel_shift(c.x, c.pos, kernel=tensor),
        kernel_shift(c.x, c.pos, kernel=kernel),
        strict=True,
    ):
        assert_close(a, b, atol=1e-9 * c.scale)
    sq = torch.rand(4, generator=c.generator, dtype=torch.float64)
    assert_close(tensor.log(sq), kernel.log(sq))
    if kernel.log_norm(2) is not None:
        assert float(tensor.log_norm(2)) == pytest.approx(kernel.log_norm(2))
    if kernel.shadow is not None:
        assert_close(tensor.shadow_scale, torch.tensor(kernel.shadow_scale, dtype=torch.float64))


@pytest.mark.parametrize("make", [Gaussian, Laplace, Matern, lambda h: RationalQuadratic(h, 3.0)])
def test_gradients_reach_the_length_scale_in_every_reader(make):
    """Sums, densities, scores and fields, against finite differences; the kernel is built of the parameter itself."""
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 3, 2, generator=g, dtype=torch.float64) for _ in range(2))
    readers = [
        lambda h: kernel_shift(x, y, kernel=make(h)),
        lambda h: KDE(y, make(h)).log_density(x),
        lambda h: drifting_field(x, y, x, kernel=make(h), divergence=ForwardKL()),
        lambda h: likelihood_field(x, y, kernel=make(h)),
    ]
    if make is not Laplace:  # whose score is not differentiable
        readers += [lambda h: KDE(y, make(h)).score(x), lambda h: mmd_field(x, y, kernel=make(h))]
    for shape in ((), (2,), (2, 1, 2), (2, 1, 1)):
        h = (0.5 + torch.rand(shape, generator=g, dtype=torch.float64)).requires_grad_()
        for read in readers:
            assert torch.autograd.gradcheck(read, (h,))


def test_a_kde_is_a_module():
    """Samples, weights and length scale move and are saved with it; a parameter is learned through the density."""
    g = torch.Generator().manual_seed(0)
    y = torch.randn(500, 2, generator=g) * torch.tensor([1.0, 4.0])
    kde = KDE(y[:250], Gaussian(nn.Parameter(torch.ones(2))), torch.ones(250))
    assert [name for name, _ in kde.named_parameters()] == ["length_scale"]
    assert set(kde.state_dict()) == {"samples", "weights", "length_scale"}
    assert repr(kde) == (
        "KDE(samples=[250, 2], kernel=Gaussian(length_scale=tensor[2]), weights=[250])"
    )
    optimizer = torch.optim.Adam(kde.parameters(), lr=0.05)
    before = kde.log_density(y[250:]).mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        (-kde.log_density(y[250:]).mean()).backward()
        optimizer.step()
    after = kde.log_density(y[250:]).mean().item()
    h = kde.kernel.length_scale
    assert after > before
    assert 2 < (h[1] / h[0]).item() < 8
    doubled = KDE(y[250:], Gaussian(torch.zeros(2) + 2), torch.zeros(250) + 2)
    doubled.load_state_dict(kde.state_dict())
    assert torch.equal(doubled.log_density(y), kde.log_density(y))
    assert kde.double().score(y.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("positive", lambda x: Gaussian([1.0, 0.0])),
        ("positive", lambda x: Laplace(torch.tensor([1.0, math.nan]))),
        ("wanted a positive number", lambda x: Gaussian("wide")),
        ("wanted a positive", lambda x: Gaussian(True)),
        ("same for all points", lambda x: Matern(torch.ones(3, 2))),
        ("one length for each", lambda x: mean_shift(x, x, kernel=Gaussian([1.0, 2.0, 3.0]))),
        ("is on meta", lambda x: mean_shift(x, x, kernel=Gaussian(torch.ones(1, device="meta")))),
        ("Divide the points", lambda x: bounds.kernel_ratio(Gaussian([1.0]), 2.0)),
        ("log_pairs", lambda x: Gaussian([1.0, 2.0]).log(x)),
        ("finite mass", lambda x: KDE(x, RationalQuadratic([1.0], 0.5)).log_density(x)),
        ("without spread", lambda x: per_dimension(torch.cat([x[:, :1], x[:, :1] * 0], -1))),
        ("at least two", lambda x: per_dimension(x[:1])),
    ],
)  # fmt: skip
def test_bad_lengths_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.randn(3, 2))
