"""Functionals: velocity = -factor N ∇ value, values are what they are named after and fall along their velocities."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.strategies import SMOOTH, assert_close, clouds, kernels
from wgflow import (
    KDE,
    MMD,
    BlobDivergence,
    BlobKL,
    ChiSquare,
    EnergyDistance,
    Euler,
    ForwardKL,
    Gaussian,
    Hellinger,
    Interaction,
    Likelihood,
    Potential,
    ReverseKL,
    blob_field,
    drifting_field,
    energy_distance,
    energy_field,
    flow,
    likelihood_field,
    mmd2,
    mmd_field,
    stein_field,
)
from wgflow.testing import toy

MIXTURE = toy.GaussianMixture(
    torch.tensor([[0.0, 0.0], [2.0, 1.0]]).double(),
    torch.tensor([0.8, 0.5]).double(),
    torch.tensor([0.4, 0.6]).double(),
)

FUNCTIONALS = {
    "potential": lambda y, k: Potential(lambda x: (x.square().sum(-1) - 1).square()),
    "interaction": lambda y, k: Interaction(k),
    "mmd": lambda y, k: MMD(y, k, torch.arange(1, y.shape[-2] + 1).double()),
    "energy": lambda y, k: EnergyDistance(y),
    "blob to samples": lambda y, k: BlobKL(KDE(y, k), k),
    "blob to a density": lambda y, k: BlobKL(MIXTURE, k),
    "likelihood of samples": lambda y, k: Likelihood(
        y, k, torch.arange(1, y.shape[-2] + 1).double()
    ),
    "forward KL to a density": lambda y, k: BlobDivergence(MIXTURE, k, ForwardKL()),
    "chi-square to a density": lambda y, k: BlobDivergence(MIXTURE, k, ChiSquare()),
}


@pytest.mark.parametrize("name", FUNCTIONALS)
@settings(max_examples=15)
@given(c=clouds(dim=2, degenerate=False), k=kernels(SMOOTH))
def test_velocity_is_minus_factor_times_n_times_the_gradient_of_the_value(name, c, k):
    F, x = FUNCTIONALS[name](c.pos, k), c.x.requires_grad_()
    (grad,) = torch.autograd.grad(F.value(x).sum(), x)
    assert F.value(x).shape == x.shape[:-2]
    assert_close(F.velocity(x).detach(), -F.factor * x.shape[-2] * grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_a_value_falls_along_its_flow(name):
    g = torch.Generator().manual_seed(0)
    x0, y = (
        torch.randn(30, 2, generator=g, dtype=torch.float64),
        1 + torch.randn(20, 2, generator=g, dtype=torch.float64),
    )
    F = FUNCTIONALS[name](y, Gaussian(0.7))
    dt = (
        1e-4 if "chi" in name else 0.01
    )  # its weight is 2r, and some particles start where p is thin
    path = flow(F, x0, solver=Euler(dt), steps=100)
    values = math.copysign(1, F.factor) * torch.stack([F.value(p) for p in path.points])
    assert bool((values.diff() <= 1e-9).all())
    assert values[-1] < values[0]


@given(clouds(degenerate=False), kernels())
def test_mmd_and_energy_distance_are_those_between_clouds(c, k):
    """The samples are the whole law here, with their self pairs; `mmd2` and `energy_distance` leave these out."""
    m = c.pos.shape[-2]
    own = k.log(torch.cdist(c.pos, c.pos).square()).exp().mean((-2, -1))
    alone = (own * m - k.log(torch.zeros(()).double()).exp()) / (m - 1)
    assert_close(MMD(c.pos, k).value(c.x), mmd2(c.x, c.pos, kernel=k) - alone + own)
    length = torch.cdist(c.pos, c.pos).mean((-2, -1))
    between = energy_distance(c.x, c.pos) + length * (m / (m - 1) - 1)
    assert_close(EnergyDistance(c.pos).value(c.x), between)


@given(clouds(batch=False, degenerate=False))
def test_mmd_and_energy_distance_are_unbiased_in_the_particles(c):
    """Averaged over all pairs of particles drawn from the samples, with repetition, both vanish: q is p."""
    F, G = MMD(c.pos, Gaussian(c.h)), EnergyDistance(c.pos)
    n = len(c.pos)
    pairs = torch.stack([c.pos[[i, j]] for i in range(n) for j in range(n)])
    zero = torch.zeros((), dtype=torch.float64)
    assert_close(F.value(pairs).mean(), zero)
    assert_close(G.value(pairs).mean(), zero)


@given(clouds(dim=2), kernels(SMOOTH))  # where every one of them is a density
def test_the_likelihood_is_the_mean_log_density(c, k):
    log_q = KDE(c.x, k).log_density(c.pos)
    mean = (c.wp * log_q).sum(-1) / c.wp.sum(-1)
    assert_close(Likelihood(c.pos, k, c.wp).value(c.x), mean)


@given(clouds(dim=2, degenerate=False), kernels(SMOOTH))  # all of them densities there
def test_sums_of_functionals_have_sums_of_gradients(c, k):
    """Each term enters with the gradient of its value, whatever its own factor: -Likelihood is descended too."""
    assume(k.log_norm(c.x.shape[-1]) is not None)  # else the likelihood has no value
    F = 0.5 * MMD(c.pos, k) + Interaction(k) + -1.5 * Likelihood(c.pos, k)
    x = c.x.requires_grad_()
    (grad,) = torch.autograd.grad(F.value(x).sum(), x)
    assert_close(F.velocity(x).detach(), -x.shape[-2] * grad, rtol=1e-7, atol=1e-8)
    parts = 0.5 * MMD(c.pos, k).value(x) + Interaction(k).value(x)
    assert_close(F.value(x), parts - 1.5 * Likelihood(c.pos, k).value(x))


@given(clouds(degenerate=False))
def test_differences_multiples_and_sums_are_those_of_the_values(c):
    F, G = MMD(c.pos, Gaussian(c.h)), Likelihood(c.pos, Gaussian(c.h))
    f, g = F.value(c.x), G.value(c.x)
    assert_close((F - G).value(c.x), f - g)
    assert_close((-G).value(c.x), -g)
    assert_close((F / 2).value(c.x), f / 2)
    assert_close(sum([F, G, G]).value(c.x), f + 2 * g)
    for other in (1, "a", True):
        with pytest.raises(TypeError):
            F + other
        with pytest.raises(TypeError):
            F - other


@pytest.mark.parametrize("kind", [MMD, Likelihood])
def test_weights_of_samples_are_masses(kind):
    y = torch.zeros(3, 2, dtype=torch.float64)
    F = kind(y, Gaussian(1.0), -torch.ones(3, dtype=torch.float64))
    for evaluate in (F.value, F.velocity):
        with pytest.raises(ValueError, match="weights hold a negative number"):
            evaluate(y)


def test_a_functional_is_printed_without_its_samples():
    F = 0.5 * MMD(torch.zeros(3, 2), Gaussian(1.0)) + Interaction(Gaussian(1.0))
    assert repr(F) == (
        "0.5 * MMD(samples=tensor[3, 2], kernel=Gaussian(length_scale=1.0), weights=None) + "
        "Interaction(kernel=Gaussian(length_scale=1.0))"
    )


@given(clouds())
def test_the_blob_of_reverse_kl_is_the_blob(c):
    k = Gaussian(1 + c.h)
    blob, general = BlobKL(KDE(c.pos, k), k), BlobDivergence(KDE(c.pos, k), k, ReverseKL())
    assert_close(general.value(c.x), blob.value(c.x))
    assert_close(general.velocity(c.x), blob.velocity(c.x), rtol=1e-7, atol=1e-8)


@given(clouds())
def test_the_likelihood_field_descends_forward_kl(c):
    """`likelihood_field` is h² Σw / N times the flow of -mean log q_h(y): the column softmax, as a functional."""
    k = Gaussian(1 + c.h)
    V = likelihood_field(c.x, c.pos, kernel=k, pos_weights=c.wp)
    scale = k.h**2 * c.wp.sum(-1)[..., None, None] / c.x.shape[-2]
    assert_close(V, scale * Likelihood(c.pos, k, c.wp).velocity(c.x), rtol=1e-8, atol=1e-8)


@given(clouds())
def test_blob_is_the_drift_and_one_term_more(c):
    """h² blob = V - Σ_j (K_ij / rho_j)(x_j - x_i), V of Eq. 3 with the particles as their own negatives."""
    k = Gaussian(c.h)
    K = k.log(torch.cdist(c.x, c.x).square()).exp()
    share = K / K.sum(-1).unsqueeze(-2)
    more = share @ c.x - share.sum(-1, keepdim=True) * c.x
    V = drifting_field(c.x, c.pos, c.x, kernel=k)
    assert_close(
        c.h**2 * blob_field(c.x, KDE(c.pos, k).score, kernel=k), V - more, atol=1e-8 * c.scale
    )


@given(clouds(degenerate=False), st.lists(st.floats(0.3, 3.0), min_size=1, max_size=3))
def test_several_scales_are_a_sum_of_fields(c, scales):
    kernels = [Gaussian(h) for h in scales]
    for field in (
        lambda k: mmd_field(c.x, c.pos, kernel=k),
        lambda k: likelihood_field(c.x, c.pos, kernel=k, pos_weights=c.wp),
        lambda k: drifting_field(
            c.x, c.pos, c.neg, kernel=k, divergence=Hellinger(), neg_weights=c.wn
        ),
        lambda k: MMD(c.pos, k, c.wp).value(c.x),
        lambda k: mmd2(c.x, c.pos, kernel=k),
    ):
        assert_close(field(kernels), sum(field(k) for k in kernels))


@given(clouds(degenerate=False), kernels(), kernels())
def test_the_mmd_flow_of_any_kernels_is_a_gradient(c, one, other):
    """Laplace, Matérn, power laws, alone or summed: -N/2 ∇_i of MMD², by autograd from its value."""
    F, x = MMD(c.pos, [one, other], c.wp), c.x.requires_grad_()
    (grad,) = torch.autograd.grad(F.value(x).sum(), x)
    assert_close(F.velocity(x).detach(), -F.factor * x.shape[-2] * grad, rtol=1e-7, atol=1e-8)


@given(clouds(degenerate=False))
def test_wide_mmd_fields_pull_the_mean_and_energy_is_their_scale_free_kin(c):
    """At h -> infinity h² V is the difference of means; the energy field needs no scale, and is bounded."""
    h = 1e4
    means = c.pos.mean(-2, keepdim=True) - c.neg.mean(-2, keepdim=True)
    wide = h**2 * mmd_field(c.x, c.pos, c.neg, kernel=Gaussian(h))
    assert_close(wide, means.expand_as(wide), rtol=1e-5, atol=1e-5)
    assert energy_field(c.x, c.pos).norm(dim=-1).max() <= 2 + 1e-9


@given(clouds(dim=2, degenerate=False), kernels(SMOOTH))
def test_stein_is_its_definition(c, kernel):
    k = lambda a, b: kernel.log((a - b).square().sum(-1)).exp()
    expected = torch.zeros_like(c.x)
    n = c.x.shape[-2]
    scores = MIXTURE.score(c.x)
    for j in range(n):
        other = c.x[..., j : j + 1, :].expand_as(c.x).clone().requires_grad_()
        (grad,) = torch.autograd.grad(k(other, c.x).sum(), other)
        expected += (k(other.detach(), c.x).unsqueeze(-1) * scores[..., j : j + 1, :] + grad) / n
    assert_close(stein_field(c.x, MIXTURE.score, kernel=kernel), expected, rtol=1e-7, atol=1e-9)


def test_stein_finds_the_moments_of_its_target():
    x0 = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = toy.GaussianMixture(
        torch.tensor([[2.0]]).double(), torch.tensor([0.5]).double(), torch.ones(1).double()
    )
    x = flow(lambda x: stein_field(x, target.score, kernel=Gaussian(0.5)), x0, steps=400).end
    assert x.mean().item() == pytest.approx(2.0, abs=0.05)
    assert x.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("kernel is empty", lambda x: mmd_field(x, x, kernel=[])),
        ("neg_weights", lambda x: mmd_field(x, x, kernel=Gaussian(1.0), neg_weights=torch.ones(3))),
        ("at least two", lambda x: mmd_field(x[:1], x, kernel=Gaussian(1.0))),
        ("pos is empty", lambda x: mmd_field(x, x[:0], kernel=Gaussian(1.0))),
        ("NaN", lambda x: blob_field(x * math.nan, lambda x: x, kernel=Gaussian(1.0))),
        ("samples has dimension", lambda x: EnergyDistance(torch.zeros(3, 5)).value(x)),
    ],
)  # fmt: skip
def test_bad_input_is_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.randn(3, 2))
