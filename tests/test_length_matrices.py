"""Matrices of squared lengths, given by their Cholesky factors: the laws of whitened coordinates, and of Gaussians."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from tests.strategies import (
    COMPACT,
    KERNELS,
    SHIFTS,
    SMOOTH,
    assert_close,
    clouds,
    kernels,
    scaled,
)
from wgflow import (
    KDE,
    Gaussian,
    RationalQuadratic,
    explain_backend,
    full_matrix,
    kernel_shift,
    mean_shift,
    mmd2,
    mmd_field,
    scott,
    silverman,
    stein_field,
)


def factor_for(c, per_element=True):
    """A random lower triangular factor [..., D, D] for these clouds, one per element of their batch or one for all."""
    d = c.x.shape[-1]
    lead = c.x.shape[:-2] if per_element else ()
    L = torch.randn(*lead, d, d, generator=c.generator, dtype=torch.float64).tril(-1)
    return L + torch.diag_embed(0.5 + torch.rand(*lead, d, generator=c.generator).double())


def whitened(t, L):
    return t @ torch.linalg.inv(L).mT


def normals(m, dim, seed):
    """m correlated points, and the matrix that correlates them."""
    g = torch.Generator().manual_seed(seed)
    z, A = (torch.randn(n, dim, generator=g, dtype=torch.float64) for n in (m, dim))
    return z @ A.mT, A


@pytest.mark.parametrize("name", SHIFTS)
@settings(max_examples=15)
@given(c=clouds(), kernel=kernels((*KERNELS, *COMPACT)), per_element=st.booleans())
def test_a_field_is_that_of_whitened_coordinates(name, c, kernel, per_element):
    L = factor_for(c, per_element)
    found = SHIFTS[name](c.x, c.pos, c.neg, scaled(kernel, L))
    plain = SHIFTS[name](*(whitened(t, L) for t in (c.x, c.pos, c.neg)), kernel)
    assert_close(found, plain @ L.mT, rtol=1e-7, atol=1e-7 * c.scale)


@given(c=clouds(degenerate=False), kernel=kernels(SMOOTH))
def test_gradients_of_functionals_are_covectors(c, kernel):
    L = factor_for(c)
    k, x, pos = scaled(kernel, L), whitened(c.x, L), whitened(c.pos, L)
    assert_close(mmd2(c.x, c.pos, kernel=k), mmd2(x, pos, kernel=kernel))
    back = torch.linalg.inv(L)
    assert_close(mmd_field(c.x, c.pos, kernel=k), mmd_field(x, pos, kernel=kernel) @ back)
    assert_close(
        stein_field(c.x, torch.zeros_like, kernel=k),
        stein_field(x, torch.zeros_like, kernel=kernel) @ back,
    )


@given(c=clouds(degenerate=False), kernel=kernels((*SMOOTH, *COMPACT)))
def test_a_mean_shift_is_the_matrix_times_the_score_of_its_shadow(c, kernel):
    k = scaled(kernel, factor_for(c))
    log_k, shift = kernel_shift(c.x, c.pos, kernel=k)
    log_H, _ = kernel_shift(c.x, c.pos, kernel=k.shadow)
    alone = (log_k == -torch.inf).unsqueeze(-1)  # a compact kernel reaches no sample: no pull
    climbed = (log_H - log_k).exp().unsqueeze(-1) * KDE(c.pos, k.shadow).score(c.x)
    climbed = torch.where(alone, 0.0, climbed)
    assert_close(shift, climbed @ k.shadow_scale.mT, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 5])
def test_a_gaussian_at_one_sample_is_the_normal_law(dim):
    """Density, score H^-1 (m - x), Hessian -H^-1, draws, and the derivatives in the factor."""
    (m,), A = normals(1, dim, seed=0)
    x, _ = normals(6, dim, seed=1)
    L = torch.linalg.cholesky(A @ A.mT).requires_grad_()
    law = MultivariateNormal(m, scale_tril=L)
    kde = KDE(m[None], Gaussian(L))
    assert_close(kde.log_density(x), law.log_prob(x))
    grads = [torch.autograd.grad(f(x).sum(), L)[0] for f in (kde.log_density, law.log_prob)]
    assert_close(grads[0], grads[1].tril())
    precision = torch.linalg.inv(A @ A.mT)
    assert_close(kde.score(x), (m - x) @ precision)
    assert_close(kde.hessian(x), -precision.expand(6, dim, dim))
    draws = kde.sample(50_000, generator=torch.Generator().manual_seed(2))
    assert_close(
        whitened(draws - m, L.detach()).T.cov(), torch.eye(dim).double(), rtol=0, atol=0.03
    )


@pytest.mark.parametrize("backend", ["dense", "blocked", "gemm"])
def test_every_backend_takes_a_matrix_and_its_gradients(backend):
    x, A = normals(4, 2, seed=3)
    y, _ = normals(5, 2, seed=4)
    L = torch.linalg.cholesky(A @ A.mT + torch.eye(2)).requires_grad_()
    run = lambda x, y, L: kernel_shift(x, y, kernel=Gaussian(L.tril()), backend=backend)
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), y.requires_grad_(), L))
    assert explain_backend(x, y, kernel=Gaussian(L.detach()), backend=backend).backend == backend


def test_gradients_keep_a_factor_triangular():
    y, _ = normals(8, 3, seed=5)
    L = torch.eye(3).double().requires_grad_()
    shift = mean_shift(y[4:], y[:4], kernel=Gaussian(L))
    for value in (shift.square().sum(), KDE(y[:4], Gaussian(L)).log_density(y[4:]).sum()):
        (gradient,) = torch.autograd.grad(value, L)
        assert gradient[2, 0] != 0
        assert torch.equal(gradient, gradient.tril())


@pytest.mark.parametrize(("rule", "extra"), [(scott, 1.0), (silverman, 4 / 5)])
def test_a_full_matrix_is_the_covariance_times_the_squared_length_of_the_rule(rule, extra):
    """For D = 3: H = S (M f)^(-2/7) with f = 1, or (D + 2)/4; so it follows every linear map of the data."""
    y, A = normals(40, 3, seed=6)
    L = full_matrix(y, rule=rule).length_scale
    assert_close(L @ L.mT, (40 / extra) ** (-2 / 7) * y.T.cov())
    moved = full_matrix(y @ A.mT, rule=rule).length_scale
    assert_close(moved @ moved.mT, A @ L @ L.mT @ A.mT, rtol=1e-8)
    both = full_matrix(
        torch.stack([y, y @ A.mT]), weights=torch.full((40,), 3.0).double(), rule=rule
    )
    assert_close(both.length_scale, torch.stack([L, moved]), rtol=1e-8)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("lower triangular", lambda y, A: Gaussian(A @ A.mT)),
        ("lower triangular", lambda y, A: Gaussian(torch.linalg.cholesky(A @ A.mT).mT)),
        ("positive", lambda y, A: Gaussian(-torch.eye(3))),
        ("Cholesky factor", lambda y, A: Gaussian(torch.ones(4, 3))),
        ("one length for each", lambda y, A: mean_shift(y, y, kernel=Gaussian(torch.eye(2)))),
        ("log_pairs", lambda y, A: RationalQuadratic(torch.eye(3)).log(y)),
        ("singular", lambda y, A: full_matrix(y[:3])),
        ("singular", lambda y, A: full_matrix(torch.cat([y, y[:, :1] + y[:, 1:2]], 1))),
    ],
)  # fmt: skip
def test_what_is_no_factor_is_refused(says, call):
    with pytest.raises(ValueError, match=says):
        call(*normals(20, 3, seed=7))
