"""Scores, shadows and densities: the identities of one reduction, each stated as both of its sides."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate

from tests.strategies import COMPACT, KERNELS, SMOOTH, assert_close, clouds, kernels
from wgflow import (
    KDE,
    Gaussian,
    Laplace,
    drifting_field,
    epanechnikov,
    kernel_shift,
    mean_shift,
)  # fmt: skip


@given(clouds())
def test_drift_is_h2_times_the_score_difference(c):
    """DFP Eq. 8."""
    k = Gaussian(c.h)
    drift = drifting_field(c.x, c.pos, c.neg, kernel=k, pos_weights=c.wp, neg_weights=c.wn)
    gap = KDE(c.pos, k, c.wp).score(c.x) - KDE(c.neg, k, c.wn).score(c.x)
    assert_close(drift, c.h**2 * gap, atol=1e-9 * c.scale)


@given(clouds())
def test_gaussian_score_is_the_mean_shift_over_h2(c):
    """DFP Eq. 7, with the score taken by autograd from the log density."""
    k, x = Gaussian(c.h), c.x.requires_grad_()
    (score,) = torch.autograd.grad(KDE(c.pos, k, c.wp).log_density(x).sum(), x)
    assert_close(
        mean_shift(x, c.pos, kernel=k, weights=c.wp).detach() / c.h**2, score, atol=1e-9 * c.scale
    )


@given(clouds(degenerate=False), kernels())
def test_the_score_of_every_kernel_is_exact(c, kernel):
    """Also of those without finite mass: the constant of the density does not matter."""
    x = c.x.requires_grad_()
    kde = KDE(c.pos, kernel, c.wp)
    (score,) = torch.autograd.grad(
        kernel_shift(x, c.pos, kernel=kernel, log_weights=c.wp.log())[0].sum(), x
    )
    assert_close(kde.score(x).detach(), score)


@given(clouds(degenerate=False), kernels((*KERNELS, *COMPACT)))
def test_mean_shift_climbs_the_density_of_the_shadow(c, k):
    """Cheng 1995: mean shift under k = c (f_H / f_k) grad log f_H, f unnormalised sums."""
    assume(k.shadow is not None)
    H, scale = k.shadow, k.shadow_scale
    log_k, shift = kernel_shift(c.x, c.pos, kernel=k)
    log_H, _ = kernel_shift(c.x, c.pos, kernel=H)
    climbed = scale * (log_H - log_k).exp().unsqueeze(-1) * KDE(c.pos, H).score(c.x)
    assert_close(shift, climbed)


@given(kernels((*KERNELS, *COMPACT)), st.floats(0.01, 30.0))
def test_the_gradient_kernel_is_minus_twice_the_derivative(kernel, sq):
    at = torch.tensor(sq, dtype=torch.float64, requires_grad=True)
    (dk,) = torch.autograd.grad(kernel.log(at).exp(), at)
    assert_close(kernel.gradient_kernel.log(at.detach()).exp(), -2 * dk, rtol=1e-8, atol=1e-300)


@given(kernels((*KERNELS, *COMPACT)), st.floats(0.0, 30.0))
def test_the_gradient_kernel_of_the_shadow_is_the_kernel(kernel, sq):
    assume(kernel.shadow is not None)
    at = torch.tensor(sq, dtype=torch.float64)
    assert_close(
        kernel.shadow.gradient_kernel.log(at) + math.log(kernel.shadow_scale), kernel.log(at)
    )


def test_laplace_mean_shift_is_not_its_own_score():
    """Eq. 8 is Gaussian alone: with the Laplace kernel of the published code the two sides are far apart."""
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(20, 2, generator=g, dtype=torch.float64),
        torch.randn(30, 2, generator=g, dtype=torch.float64),
    )
    gap = mean_shift(x, y, kernel=Laplace(1.0)) - KDE(y, Laplace(1.0)).score(x)
    assert gap.abs().max() > 0.1


@pytest.mark.parametrize("make", [*KERNELS, *COMPACT])
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_kernels_integrate_to_their_mass(make, dim):
    kernel = make(0.7)
    area = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)

    def radial(r):
        return (
            area
            * r ** (dim - 1)
            * math.exp(kernel.log(torch.tensor(r * r, dtype=torch.float64)).item())
        )

    if kernel.log_norm(dim) is None:
        assert radial(200.0) > 1e-2 * radial(20.0)  # a tail like 1/r or heavier
        return
    mass, _ = integrate.quad(
        radial, 0, getattr(kernel, "h", math.inf) if make in COMPACT else math.inf, limit=200
    )
    assert math.log(mass) == pytest.approx(-kernel.log_norm(dim), abs=1e-7)


@given(clouds(degenerate=False))
def test_gaussian_hessian_is_the_local_covariance(c):
    """grad^2 log p_h = (Cov_W - h^2 I) / h^4."""
    kde = KDE(c.pos, Gaussian(c.h), c.wp)
    W = kde.responsibilities(c.x)
    gap = c.pos.unsqueeze(-3) - (
        c.x + mean_shift(c.x, c.pos, kernel=kde.kernel, weights=c.wp)
    ).unsqueeze(-2)
    cov = torch.einsum("...nm,...nmd,...nme->...nde", W, gap, gap)
    eye = torch.eye(c.x.shape[-1], dtype=torch.float64)
    assert_close(kde.hessian(c.x), (cov - c.h**2 * eye) / c.h**4, atol=1e-8 * c.scale**2)


@given(clouds(degenerate=False), kernels((*SMOOTH, Laplace)))
def test_the_hessian_is_the_derivative_of_the_score(c, kernel):
    """For Laplace off the samples, from which random points are apart."""
    kde, v = KDE(c.pos, kernel), c.rand(*c.x.shape)
    eps = 1e-5
    along = (kde.score(c.x + eps * v) - kde.score(c.x - eps * v)) / (2 * eps)
    assert_close((kde.hessian(c.x) @ v.unsqueeze(-1)).squeeze(-1), along, rtol=1e-4, atol=1e-6)


@given(clouds(), kernels())
def test_responsibilities_are_the_weights_of_the_barycentre(c, kernel):
    W = KDE(c.pos, kernel, c.wp).responsibilities(c.x)
    assert_close(W.sum(-1), torch.ones_like(W[..., 0]))
    assert_close(
        W @ c.pos - c.x, mean_shift(c.x, c.pos, kernel=kernel, weights=c.wp), atol=1e-8 * c.scale
    )
    assert bool((W[c.wp.unsqueeze(-2).expand_as(W) == 0] == 0).all())


@given(c=clouds(degenerate=False, batch=False), distance=st.floats(1e2, 1e6))
def test_a_density_is_read_from_far_away(c, distance):
    """Where every weight underflows: log density and score are those of the nearest sample alone."""
    x = c.x + distance * torch.nn.functional.normalize(c.rand(1, c.x.shape[-1]), dim=-1)
    kde, h = KDE(c.pos, Gaussian(0.01 * c.h)), 0.01 * c.h
    sq, nearest = (
        torch.cdist(x, c.pos, compute_mode="donot_use_mm_for_euclid_dist").square().min(-1)
    )
    expected = -sq / (2 * h**2) - math.log(len(c.pos)) + Gaussian(h).log_norm(x.shape[-1])
    assert_close(kde.log_density(x), expected, rtol=1e-9)
    assert_close(kde.score(x), (c.pos[nearest] - x) / h**2, rtol=1e-6)


@given(clouds(), kernels())
def test_effective_sample_size_counts_samples(c, kernel):
    ess = KDE(c.pos, kernel, c.wp).effective_sample_size(c.x)
    assert bool(((ess > 1 - 1e-9) & (ess < c.pos.shape[-2] + 1e-9)).all())
    everywhere = KDE(c.pos, Gaussian(1e6)).effective_sample_size(c.x)
    assert_close(everywhere, torch.full_like(everywhere, c.pos.shape[-2]), rtol=1e-6)


@pytest.mark.parametrize("make", [*KERNELS, *COMPACT])
def test_kde_samples_follow_its_density(make):
    """One sample point: the radius of a draw has the radial law of the kernel, read at its quartiles."""
    g = torch.Generator().manual_seed(0)
    kernel, dim = make(0.5), 3
    if kernel.log_norm(dim) is None:
        pytest.skip("no density in this dimension")
    r = (
        KDE(torch.zeros(1, dim, dtype=torch.float64), kernel)
        .sample(40_000, generator=g)
        .norm(dim=-1)
    )

    def radial(r):
        return (
            4
            * math.pi
            * r**2
            * math.exp(kernel.log(torch.tensor(r * r).double()).item() + kernel.log_norm(dim))
        )

    for level in (0.25, 0.5, 0.75):
        assert integrate.quad(radial, 0, r.quantile(level).item())[0] == pytest.approx(
            level, abs=0.01
        )


def test_kde_samples_pick_by_weight():
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([[0.0], [10.0]])
    draws = KDE(y, Gaussian(0.1), torch.tensor([1.0, 3.0])).sample(40_000, generator=g)
    assert (draws > 5).double().mean().item() == pytest.approx(0.75, abs=0.01)


def test_a_kde_refuses_bad_samples_at_once():
    with pytest.raises(ValueError, match="is empty"):
        KDE(torch.zeros(0, 2), Gaussian(1.0))
    with pytest.raises(ValueError, match="negative"):
        KDE(torch.zeros(2, 2), Gaussian(1.0), torch.tensor([1.0, -1.0]))


def test_a_point_out_of_reach_of_every_sample_rests_on_none():
    kde = KDE(torch.tensor([[0.0], [0.5]]), epanechnikov(1.0))
    x = torch.tensor([[0.25], [9.0]], requires_grad=True)
    W, size = kde.responsibilities(x), kde.effective_sample_size(x)
    assert_close(W, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert_close(size, torch.tensor([2.0, 0.0]))
    assert torch.autograd.grad(size.sum() + W[:, 0].sum(), x)[0].isfinite().all()
