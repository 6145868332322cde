"""The conservative field of any kernel: a gradient, where the mean shift of Eq. 3 is none but for Gaussians."""

import pytest
import torch
from hypothesis import given
from torch.func import jacrev

from tests.strategies import COMPACT, KERNELS, assert_close, clouds, kernels
from wgflow import (
    Gaussian,
    Laplace,
    conservative_field,
    drifting_field,
    energy_field,
    kernel_average,
    mean_shift,
)


@given(clouds(degenerate=False), kernels())
def test_the_conservative_field_is_the_gradient_of_the_log_ratio_of_densities(c, kernel):
    x = c.x.requires_grad_()
    log_p, log_q = (
        kernel_average(x, y, kernel=kernel, log_weights=w.log())[0]
        for y, w in ((c.pos, c.wp), (c.neg, c.wn))
    )
    (gradient,) = torch.autograd.grad((log_p - log_q).sum(), x)
    V = conservative_field(
        x.detach(), c.pos, c.neg, kernel=kernel, pos_weights=c.wp, neg_weights=c.wn
    )
    assert_close(V, gradient)


@given(clouds(degenerate=False))
def test_one_positive_attracts_under_laplace_as_in_the_energy_field(c):
    """∇ log k(x - y) of a single y is a unit vector over h: linear in the law of y, where Gaussians give its mean."""
    one, other = c.pos[..., :1, :], c.pos[..., -1:, :] + 1
    difference = [
        V(c.x, one, c.neg) - V(c.x, other, c.neg)
        for V in (lambda *t: conservative_field(*t, kernel=Laplace(c.h)), energy_field)
    ]
    assert_close(difference[0], difference[1] / c.h)


@given(clouds(degenerate=False))
def test_a_wide_laplace_kernel_gives_the_energy_field(c):
    h = 1e6
    V = conservative_field(c.x, c.pos, c.neg, kernel=Laplace(h))
    assert_close(h * V, energy_field(c.x, c.pos, c.neg), atol=1e-4, rtol=1e-4)


def curl(field):
    """The largest |∂V_a/∂x_b - ∂V_b/∂x_a| at a point of the plane."""
    g = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (1, 4, 5))
    J = jacrev(lambda x: field(x, pos, neg)[0])(x)[:, 0]
    return (J - J.mT).abs().max().item()


@pytest.mark.parametrize("make", KERNELS)
def test_the_conservative_field_has_no_curl(make):
    assert curl(lambda *t: conservative_field(*t, kernel=make(0.8))) < 1e-12


def test_among_mean_shifts_that_of_the_gaussian_has_no_curl_and_that_of_laplace_has():
    """Franz et al. 2026: a position-dependent normalisation is no gradient, the Gaussian excepted."""
    assert curl(lambda *t: drifting_field(*t, kernel=Gaussian(0.8))) < 1e-12
    assert curl(lambda *t: drifting_field(*t, kernel=Laplace(0.8))) > 0.01


@given(clouds(degenerate=False), kernels((*KERNELS, *COMPACT)))
def test_a_drift_is_the_conservative_field_of_the_shadow_and_a_mismatch_of_scales(c, k):
    """V = a_q V# + (a_p - a_q) ∇log p#, a = c f#/f_k (Franz et al. 2026); for the Gaussian a = h²."""
    if k.shadow is None:
        return
    factors = [
        k.shadow_scale
        * (kernel_average(c.x, y, kernel=k.shadow)[0] - kernel_average(c.x, y, kernel=k)[0]).exp()
        for y in (c.pos, c.neg)
    ]
    a_p, a_q = (a.unsqueeze(-1) for a in factors)
    sharp = conservative_field(c.x, c.pos, c.neg, kernel=k.shadow)
    score_p = mean_shift(c.x, c.pos, kernel=k) / a_p
    V = drifting_field(c.x, c.pos, c.neg, kernel=k)
    assert_close(V, a_q * sharp + (a_p - a_q) * score_p, rtol=1e-7, atol=1e-8)
