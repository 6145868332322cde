"""The fields: their symmetries, the functional each of them descends, and what one positive per state does to them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds, kernels, rotation
from wgflow import (
    KDE,
    Alpha,
    ChiSquare,
    ForwardKL,
    Gaussian,
    Hellinger,
    JensenShannon,
    Laplace,
    ReverseKL,
    SkewKL,
    biweight,
    blob_field,
    conservative_field,
    drifting_field,
    energy_distance,
    energy_field,
    likelihood_field,
    mean_shift,
    mmd_field,
    mode_proportions,
    published_field,
    sinkhorn_field,
    spread_ratio,
    stein_field,
)

DIVERGENCES = [
    ReverseKL(), ForwardKL(), JensenShannon(), SkewKL(), ChiSquare(), Hellinger(),
    Alpha(0.3), Alpha(1.0), Alpha(0.0), ForwardKL() + 0.5 * ChiSquare(),
]  # fmt: skip

# Every field as a function of (x, pos, neg) and of the unit of length, for the laws that all of them obey.
FIELDS = {
    "mean_shift": lambda x, pos, neg, unit: mean_shift(x, pos, kernel=Gaussian(unit)),
    **{
        f"drifting-{d}": lambda x, pos, neg, unit, d=d: drifting_field(
            x, pos, neg, kernel=Laplace(unit), divergence=d
        )
        for d in DIVERGENCES
    },
    "likelihood": lambda x, pos, neg, unit: likelihood_field(x, pos, kernel=Gaussian(unit)),
    "energy": lambda x, pos, neg, unit: unit * energy_field(x, pos, neg),
    "published": lambda x, pos, neg, unit: published_field(
        x, pos, neg=neg, temperatures=(0.2, 0.5), scale_floor=1e-30
    ),
}
FIELDS |= {
    "sinkhorn": lambda x, pos, neg, unit: sinkhorn_field(x, pos, neg, epsilon=unit**2),
    "conservative": lambda x, pos, neg, unit: (
        unit**2 * conservative_field(x, pos, neg, kernel=Gaussian(unit))
    ),
    "several scales": lambda x, pos, neg, unit: drifting_field(
        x, pos, neg, kernel=[Gaussian(unit), Laplace(2 * unit)]
    ),
    "mmd": lambda x, pos, neg, unit: unit**2 * mmd_field(x, pos, neg, kernel=Gaussian(unit)),
    "blob": lambda x, pos, neg, unit: (
        unit**2 * blob_field(x, KDE(pos, Gaussian(unit)).score, kernel=Laplace(unit))
    ),
    "stein": lambda x, pos, neg, unit: (
        unit**2 * stein_field(x, KDE(pos, Gaussian(unit)).score, kernel=Gaussian(2 * unit))
    ),
}
fields = pytest.mark.parametrize("name", FIELDS)


@fields
@given(c=clouds())
def test_translation_moves_points_not_velocities(name, c):
    by = c.rand(c.x.shape[-1])
    V = FIELDS[name](c.x, c.pos, c.neg, 1.5)
    assert_close(FIELDS[name](c.x + by, c.pos + by, c.neg + by, 1.5), V, rtol=1e-6, atol=1e-8)


@fields
@given(c=clouds(degenerate=False))  # the energy field's direction jumps where points coincide
def test_rotation_turns_velocities(name, c):
    R = rotation(c.x.shape[-1], c.generator)
    V = FIELDS[name](c.x, c.pos, c.neg, 1.5)
    assert_close(FIELDS[name](c.x @ R, c.pos @ R, c.neg @ R, 1.5), V @ R, rtol=1e-6, atol=1e-7)


@fields
@given(c=clouds(), unit=st.floats(0.01, 100.0))
def test_a_change_of_units_changes_only_units(name, c, unit):
    V = FIELDS[name](c.x, c.pos, c.neg, 1.5)
    scaled = FIELDS[name](unit * c.x, unit * c.pos, unit * c.neg, 1.5 * unit)
    assert_close(scaled / unit, V, rtol=1e-6, atol=1e-8)


@fields
@given(c=clouds(degenerate=False))
def test_the_order_of_points_does_not_matter(name, c):
    x, pos, neg = (torch.randperm(t.shape[-2], generator=c.generator) for t in (c.x, c.pos, c.neg))
    V = FIELDS[name](c.x, c.pos, c.neg, 1.5)
    permuted = FIELDS[name](c.x[..., x, :], c.pos[..., pos, :], c.neg[..., neg, :], 1.5)
    assert_close(permuted, V[..., x, :])


@given(c=clouds(), k=kernels())
def test_drift_is_antisymmetric(c, k):
    """V_{p,q} = -V_{q,p}, so the field is zero when both clouds are one."""
    assert_close(
        drifting_field(c.x, c.pos, c.neg, kernel=k), -drifting_field(c.x, c.neg, c.pos, kernel=k)
    )
    assert_close(drifting_field(c.x, c.pos, c.pos, kernel=k), torch.zeros_like(c.x))


@given(c=clouds(), divergence=st.sampled_from(DIVERGENCES))
def test_a_batch_is_its_elements(c, divergence):
    V = drifting_field(c.x, c.pos, c.neg, kernel=Gaussian(c.h), divergence=divergence)
    for i in itertools.product(*(range(n) for n in c.x.shape[:-2])):
        one = drifting_field(
            c.x[i], c.pos[i], c.neg[i], kernel=Gaussian(c.h), divergence=divergence
        )
        assert_close(V[i], one)


@given(c=clouds(batch=False))
def test_wide_kernels_give_the_difference_of_means(c):
    V = drifting_field(c.x, c.pos, c.neg, kernel=Gaussian(1e5))
    assert_close(V, (c.pos.mean(0) - c.neg.mean(0)).expand_as(V), rtol=1e-6, atol=1e-6)


@given(c=clouds(batch=False, degenerate=False))
def test_narrow_kernels_give_the_nearest_sample(c):
    nearest = c.pos[torch.cdist(c.x, c.pos).argmin(-1)]
    assert_close(mean_shift(c.x, c.pos, kernel=Gaussian(1e-5)), nearest - c.x)


# -- divergences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@given(log_ratio=st.floats(-3.0, 3.0))
def test_the_weight_is_r_times_the_second_derivative_of_f(divergence, log_ratio):
    t = torch.tensor(log_ratio, dtype=torch.float64)
    r, eps = t.exp(), 1e-3 * t.exp()
    f = lambda r: divergence.f(r.log())
    second = (f(r + eps) - 2 * f(r) + f(r - eps)) / eps**2
    assert_close(divergence.weight(t), r * second, rtol=1e-4, atol=1e-6)


@given(log_ratio=st.floats(-5.0, 5.0))
def test_alpha_runs_through_the_named_divergences(log_ratio):
    """0 forward KL, 1 reverse KL, 1/2 twice Hellinger, 2 half of chi-square; f up to a multiple of r - 1."""
    t = torch.tensor(log_ratio, dtype=torch.float64)
    for alpha, factor, named in (
        (0, 1, ForwardKL()),
        (1, 1, ReverseKL()),
        (0.5, 2, Hellinger()),
        (2, 0.5, ChiSquare()),
    ):
        assert_close(Alpha(alpha).weight(t), factor * named.weight(t))
        gap = Alpha(alpha).f(t) - factor * named.f(t)
        slope = {0: 1.0, 1: -1.0, 0.5: 0.0, 2: 0.0}[alpha]
        assert_close(gap, slope * t.expm1(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_f_vanishes_between_equals(divergence):
    assert divergence.f(torch.zeros((), dtype=torch.float64)).abs() < 1e-15


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@given(c=clouds())
def test_the_weighted_drift_is_the_gradient_flow_of_its_divergence(divergence, c):
    """h^2 times -grad f'(q_h / p_h), f' and its gradient by autograd from the normalised log densities."""
    k, x = Gaussian(1 + c.h), c.x.requires_grad_()
    log_r = KDE(c.neg, k, c.wn).log_density(x) - KDE(c.pos, k, c.wp).log_density(x)
    t = log_r.detach().requires_grad_()
    (df_dt,) = torch.autograd.grad(divergence.f(t).sum(), t, create_graph=True)
    (slope,) = torch.autograd.grad((df_dt * (-t).exp()).sum(), t)  # d f'(r) / d log r
    (grad,) = torch.autograd.grad((slope.detach() * log_r).sum(), x)
    V = drifting_field(
        x, c.pos, c.neg, kernel=k, divergence=divergence, pos_weights=c.wp, neg_weights=c.wn
    ).detach()
    assert_close(V, -((1 + c.h) ** 2) * grad, rtol=1e-6, atol=1e-8)


@given(c=clouds(), factor=st.floats(0.1, 5.0))
def test_the_field_of_a_sum_of_divergences_is_the_sum_of_their_fields(c, factor):
    """Cao et al. 2026: a positive sum of divergences is one, and its flow the sum of theirs."""
    a, b = ForwardKL(), ChiSquare()
    V, V_a, V_b = (
        drifting_field(c.x, c.pos, c.neg, kernel=Gaussian(1 + c.h), divergence=d)
        for d in (a + factor * b, a, b)
    )
    assert_close(V, V_a + factor * V_b)


def test_divergences_have_a_normal_form():
    class Own:
        f = weight = staticmethod(torch.ones_like)

    a, b, own = ForwardKL(), ChiSquare(), Own()
    assert 2 * (a + b) == 2 * a + 2.0 * b
    assert sum([a, b]) == a + b
    assert hash(a + b) == hash(a + b)
    assert eval(repr(a + 0.5 * b)) == a + 0.5 * b
    assert (a + own).weight(torch.zeros(1)) == (own + a).weight(torch.zeros(1)) == 2
    with pytest.raises(ValueError, match="factor"):
        -1 * a
    with pytest.raises(TypeError):
        a + 1


@given(c=clouds(), k=kernels())
def test_repeating_a_whole_cloud_changes_no_weighted_field(c, k):
    """The ratio is one of densities: the sizes of the sets, and the unit of the weights, are not in it."""
    V = drifting_field(c.x, c.pos, c.neg, kernel=k, divergence=JensenShannon(), pos_weights=c.wp)
    twice = drifting_field(
        c.x,
        c.pos,
        torch.cat([c.neg, c.neg], -2),
        kernel=k,
        divergence=JensenShannon(),
        pos_weights=7 * c.wp,
    )
    assert_close(twice, V)


@given(c=clouds(batch=False, degenerate=False))
def test_a_left_out_point_is_left_out_of_the_ratio_too(c):
    V = drifting_field(
        c.x, c.pos, c.x, kernel=Gaussian(c.h), divergence=ChiSquare(), neg_weights=torch.ones(len(c.x)).double(),
        skip_self=True,
    )  # fmt: skip
    unweighted = drifting_field(
        c.x, c.pos, c.x, kernel=Gaussian(c.h), divergence=ChiSquare(), skip_self=True
    )
    for i in range(len(c.x)):
        others = torch.cat([c.x[:i], c.x[i + 1 :]])
        one = drifting_field(
            c.x[i : i + 1], c.pos, others, kernel=Gaussian(c.h), divergence=ChiSquare()
        )
        assert_close(V[i : i + 1], one)
        assert_close(unweighted[i : i + 1], one)


@given(c=clouds())
def test_the_joint_row_softmax_is_the_flow_of_the_k_divergence(c):
    """Rows of the joint softmax over [neg | pos] with cross weights give a (1 - a) V exactly: no reverse KL.

    r there is a ratio of sums, so with unequal sizes it is (M / P) q/p: weights P and M undo that.
    """
    k = Laplace(c.h)
    logits = k.log(torch.cdist(c.x, torch.cat([c.neg, c.pos], -2)).square()).softmax(-1)
    m, p = c.neg.shape[-2], c.pos.shape[-2]
    away, towards = logits.split([m, p], -1)
    joint = away.sum(-1, keepdim=True) * (towards @ c.pos) - towards.sum(-1, keepdim=True) * (
        away @ c.neg
    )
    gap = mean_shift(c.x, c.pos, kernel=k) - mean_shift(c.x, c.neg, kernel=k)
    a = towards.sum(-1, keepdim=True)
    assert_close(joint, a * (1 - a) * gap, rtol=1e-8, atol=1e-9)
    if m == p:
        assert_close(
            joint, drifting_field(c.x, c.pos, c.neg, kernel=k, divergence=SkewKL()), rtol=1e-8
        )


# -- the two fields that are linear in the positives ------------------------------------------------------------------


@given(c=clouds())
def test_likelihood_field_is_the_gradient_of_the_likelihood(c):
    """V_i = -h^2 grad_i of sum_k -w_k log q_h(y_k), q_h the KDE of the points."""
    k, x = Gaussian(c.h), c.x.requires_grad_()
    loss = -(c.wp * KDE(x, k).log_density(c.pos)).sum()
    (grad,) = torch.autograd.grad(loss, x)
    V = likelihood_field(x, c.pos, kernel=k, pos_weights=c.wp).detach()
    assert_close(V, -(c.h**2) * grad, atol=1e-8 * c.scale)


def energy_score(x, pos):
    """mean |x - y| - mean_{i != j} |x_i - x_j| / 2, summed over the batch."""
    n = x.shape[-2]
    return (
        torch.cdist(x, pos).mean((-2, -1)) - torch.cdist(x, x).sum((-2, -1)) / (2 * n * (n - 1))
    ).sum()


@given(c=clouds(degenerate=False))
def test_energy_field_is_the_gradient_of_the_energy_score(c):
    x = c.x.requires_grad_()
    (grad,) = torch.autograd.grad(energy_score(x, c.pos), x)
    assert_close(energy_field(x, c.pos).detach(), -x.shape[-2] * grad, rtol=1e-8, atol=1e-8)


@given(c=clouds(batch=False, degenerate=False))
def test_energy_field_is_made_of_unit_vectors(c):
    unit = lambda v: torch.nn.functional.normalize(v, dim=-1)
    V = energy_field(c.x, c.pos, c.neg, pos_weights=c.wp)
    for i, x in enumerate(c.x):
        pull = (c.wp[:, None] * unit(c.pos - x)).sum(0) / c.wp.sum()
        assert_close(V[i], pull - unit(c.neg - x).mean(0))


@pytest.mark.parametrize(
    "field", [energy_field, lambda x, y: likelihood_field(x, y, kernel=Gaussian(0.7))]
)
@given(c=clouds(degenerate=False))
def test_a_field_linear_in_p_is_unbiased_under_minibatches_of_positives(field, c):
    """The mean over single positives is the field of all of them (up to likelihood's sum over positives)."""
    p = c.pos.shape[-2]
    singles = torch.stack([field(c.x, c.pos[..., k : k + 1, :]) for k in range(p)]).mean(0)
    all_of_them = field(c.x, c.pos)
    assert_close(singles, all_of_them if field is energy_field else all_of_them / p)


@given(c=clouds(degenerate=False))
def test_eq_3_is_not_unbiased_under_minibatches(c):
    """With one positive the attraction is y - x for every kernel and bandwidth: the mean of them ignores distances."""
    k = Gaussian(c.h)
    singles = [mean_shift(c.x, c.pos[..., j : j + 1, :], kernel=k) for j in range(c.pos.shape[-2])]
    assert_close(torch.stack(singles).mean(0), c.pos.mean(-2, keepdim=True) - c.x)


def train_one_positive(field, steps=400):
    """A state with two modes, .7 at -1 and .3 at +1, one data point per step: where do 64 free particles go?"""
    g = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(64, 1, generator=g, dtype=torch.float64)
    for t in range(steps):
        group = torch.randperm(64, generator=g).view(8, 8)
        mode = 1 - 2 * (torch.rand(8, 1, 1, generator=g) < 0.7).double()
        y = mode + 0.05 * torch.randn(8, 1, 1, generator=g, dtype=torch.float64)
        V = field(x[group], y)
        x[group.view(-1)] += (0.3 / (1 + t / 40)) * V.view(64, 1)
    return x


def test_one_positive_per_state_collapses_eq_3_but_no_field_linear_in_p():
    """One positive: Eq. 3 finds the mean of the modes, where no data is; fields linear in p find both modes."""
    modes = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    off_mode = lambda x: (x.abs() - 1).abs().mean().item()
    drift = train_one_positive(lambda x, y: drifting_field(x, y, x, kernel=Gaussian(0.05)))
    assert abs(drift.mean().item() + 0.4) < 0.15  # E y = -.4
    assert off_mode(drift) > 0.45
    for field in (energy_field, lambda x, y: 8 * likelihood_field(x, y, kernel=Gaussian(0.4)) / 2):
        x = train_one_positive(field)
        assert off_mode(x) < 0.25
        assert 0.5 < mode_proportions(x, modes)[0].item() < 0.85
    assert spread_ratio(drift, modes) < spread_ratio(train_one_positive(energy_field), modes)


def test_energy_field_needs_something_that_pushes():
    x, y = torch.randn(1, 2), torch.randn(3, 2)
    with pytest.raises(ValueError, match="at least 2"):
        energy_field(x, y)
    with pytest.raises(ValueError, match="neg_weights"):
        energy_field(torch.randn(2, 2), y, neg_weights=torch.ones(2))


def test_energy_field_is_finite_where_points_coincide():
    x = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    V = energy_field(x, torch.zeros(2, 2, dtype=torch.float64))
    assert_close(V.detach(), torch.zeros_like(V))
    (grad,) = torch.autograd.grad(V.sum(), x)
    assert grad.isfinite().all()


# -- the published normalisation ----------------------------------------------------------------------------------


def literal_published(gen, pos, neg, temperatures, wg, wp, wn, clip=1e-6):
    """The sentence of the theory, one number at a time: gen [B, G, D], pos [B, P, D], neg [B, M, D]."""
    B, G, D = gen.shape
    everything = [torch.cat([gen[b], neg[b], pos[b]]) for b in range(B)]
    weight = [torch.cat([wg[b], wn[b], wp[b]]) for b in range(B)]
    T, first_pos = len(everything[0]), G + neg.shape[1]
    d = torch.zeros(B, G, T, dtype=gen.dtype)
    for b in range(B):
        for i in range(G):
            for j in range(T):
                d[b, i, j] = (gen[b, i] - everything[b][j]).square().sum().sqrt()
    w = torch.stack(weight)
    s = (d * w[:, None]).sum() / (w[:, None] * torch.ones_like(d)).sum()
    total = torch.zeros_like(gen)
    for R in temperatures:
        V = torch.zeros_like(gen)
        for b in range(B):
            logit = -d[b] / (s * R)
            for i in range(G):
                logit[i, i] -= 100 / R
            row = (logit - logit.logsumexp(1, keepdim=True)).exp()
            column = (logit - logit.logsumexp(0, keepdim=True)).exp()
            A = (
                torch.where(row * column > clip, row * column, torch.full_like(row, clip)).sqrt()
                * weight[b]
            )
            z = everything[b] / (s / math.sqrt(D))
            for i in range(G):
                s_pos, s_neg = A[i, first_pos:].sum(), A[i, :first_pos].sum()
                to = sum(A[i, k] * z[k] for k in range(first_pos, T)) / s_pos
                off = sum(A[i, j] * z[j] for j in range(first_pos)) / s_neg
                V[b, i] = s_pos * s_neg * (to - off)
        total += V / max(V.square().mean().sqrt().item(), 1e-4)
    return total * s / math.sqrt(D)


@given(
    c=clouds(batch=False, degenerate=False),
    temperatures=st.sampled_from([(0.1,), (0.02, 0.05, 0.2)]),
)
def test_published_field_is_the_formula_of_the_published_code(c, temperatures):
    gen, pos, neg, wp, wn = (
        torch.stack([t, t + 0.1 * c.rand(*t.shape)]) for t in (c.x, c.pos, c.neg, c.wp, c.wn)
    )
    wp, wn, wg = (
        wp.abs(),
        wn.abs(),
        torch.rand(gen.shape[:-1], generator=c.generator, dtype=gen.dtype),
    )
    V = published_field(
        gen, pos, neg=neg, temperatures=temperatures, x_weights=wg, pos_weights=wp, neg_weights=wn
    )
    assert_close(V, literal_published(gen, pos, neg, temperatures, wg, wp, wn), rtol=1e-8)
    ones = [torch.ones_like(t[..., 0]) for t in (gen, pos, neg[:, :0])]
    plain = published_field(gen, pos, temperatures=temperatures)
    assert_close(plain, literal_published(gen, pos, neg[:, :0], temperatures, *ones), rtol=1e-8)


def test_published_scale_and_rms_are_scalars_over_the_whole_batch():
    """One state's field depends on the other states of the batch; a per-state normalisation would not."""
    g = torch.Generator().manual_seed(0)
    gen, pos = torch.randn(2, 4, 2, generator=g), torch.randn(2, 3, 2, generator=g)
    together = published_field(gen, torch.stack([pos[0], pos[1] + 5]))
    alone = published_field(gen[:1], pos[:1])
    assert (together[0] - alone[0]).abs().max() > 1e-2


def test_a_collapsed_group_moves_as_one_under_the_published_normalisation():
    """Far tighter than its distance to the data, a group gets nearly equal velocities at the full rms: silently."""
    g = torch.Generator().manual_seed(0)
    gen = 1e-3 * torch.randn(32, 8, 2, generator=g, dtype=torch.float64)
    pos = 2 * torch.nn.functional.normalize(
        torch.randn(32, 1, 2, generator=g, dtype=torch.float64), dim=-1
    )
    V = published_field(gen, pos, temperatures=(0.1,))
    across = (V - V.mean(1, keepdim=True)).square().mean().sqrt() / V.square().mean().sqrt()
    assert across < 0.5
    assert spread_ratio(gen, pos) < 0.01
    energy = energy_field(gen, pos)
    assert (
        energy - energy.mean(1, keepdim=True)
    ).square().mean().sqrt() / energy.square().mean().sqrt() > 0.5


@given(c=clouds(batch=False, degenerate=False))
def test_published_field_is_differentiable(c):
    x = c.x.requires_grad_()
    (grad,) = torch.autograd.grad(published_field(x, c.pos).square().sum(), x)
    assert grad.isfinite().all()


def test_spread_ratio_is_one_for_equal_laws():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 2, generator=g), torch.randn(500, 2, generator=g)
    assert spread_ratio(x, y).item() == pytest.approx(1, abs=0.05)
    assert spread_ratio(1e-3 * x, y).item() < 0.01
    assert energy_distance(x, y).abs() < 0.02


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("pos has dimension 3", lambda x: drifting_field(x, torch.zeros(2, 3), x, kernel=Gaussian(1.0))),
        ("neg is empty", lambda x: drifting_field(x, x, x[:0], kernel=Gaussian(1.0))),
        ("pos is empty", lambda x: energy_field(x, x[:0])),
        ("pos is empty", lambda x: likelihood_field(x, x[:0], kernel=Gaussian(1.0))),
        ("pos is empty", lambda x: published_field(x, x[:0])),
        ("an empty batch has no mean distance", lambda x: published_field(x[:0, None], x)),
        ("negative", lambda x: drifting_field(x, x, x, kernel=Gaussian(1.0), pos_weights=torch.tensor([1.0, -1, 1]))),
        ("zero", lambda x: drifting_field(x, x, x, kernel=Gaussian(1.0), pos_weights=torch.zeros(3))),
        ("skip_self", lambda x: drifting_field(x, x, x[:2], kernel=Gaussian(1.0), skip_self=True)),
        ("temperatures", lambda x: published_field(x, x, temperatures=(0.1, -1.0))),
        ("temperatures", lambda x: published_field(x, x, temperatures=())),
        ("NaN", lambda x: energy_field(x * math.nan, x)),
        ("NaN", lambda x: published_field(x, x * math.nan)),
        ("dtype", lambda x: published_field(x, x.double())),
    ],
)  # fmt: skip
def test_bad_input_is_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.randn(3, 2))


@pytest.mark.parametrize("divergence", [JensenShannon(), ChiSquare(), ForwardKL(), SkewKL()])
def test_a_weighted_field_keeps_its_gradient_where_it_vanishes(divergence):
    """In the middle of a cross V = 0 and r = 1 by symmetry: the slope is weight(1) times that of Eq. 3."""
    pos = torch.tensor([[0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.zeros(1, 2, dtype=torch.float64)

    def slope(divergence):
        field = lambda x: drifting_field(
            x, pos, pos.flip(-1), kernel=Gaussian(1.0), divergence=divergence
        )
        return torch.autograd.functional.jacobian(field, x).reshape(2, 2)

    weight = divergence.weight(torch.zeros((), dtype=torch.float64))
    assert_close(slope(divergence), weight * slope(ReverseKL()))
    assert slope(divergence).abs().max() > 0.1


@pytest.mark.parametrize("divergence", [ReverseKL(), JensenShannon(), ChiSquare(), ForwardKL()])
def test_out_of_reach_of_a_compact_kernel_no_field_has_a_gradient(divergence):
    x = torch.tensor([[0.1], [50.0]], dtype=torch.float64, requires_grad=True)
    pos, neg = (torch.tensor([[a], [0.5]], dtype=torch.float64) for a in (0.2, -0.3))
    V = drifting_field(x, pos, neg, kernel=biweight(2.0), divergence=divergence)
    (grad,) = torch.autograd.grad(V.sum(), x)
    assert V[1] == grad[1] == 0
    assert grad.isfinite().all()


def test_positives_out_of_reach_of_every_point_pull_none():
    x, pos = torch.zeros(3, 2), torch.full((2, 2), 9.0)
    assert (likelihood_field(x, pos, kernel=biweight(1.0)) == 0).all()
    near = torch.full((1, 2), 0.1)
    both = likelihood_field(x, torch.cat([pos, near]), kernel=biweight(1.0))
    assert_close(both, likelihood_field(x, near, kernel=biweight(1.0)))


def test_a_positive_without_weight_takes_no_digits_from_the_others():
    """Far from 0, where differences are exact about an origin near the positives alone."""
    x, pos = (1e12 + n * torch.arange(4, dtype=torch.float64)[:, None] for n in (0.5, 0.25))
    far = torch.cat([torch.full((1, 1), 1e18, dtype=torch.float64), pos])
    weights = torch.tensor([0, 1, 1, 1, 1], dtype=torch.float64)
    found = likelihood_field(x, far, kernel=Gaussian(1.0), pos_weights=weights)
    assert_close(found, likelihood_field(x - 1e12, pos - 1e12, kernel=Gaussian(1.0)))


def test_the_published_field_has_a_gradient_where_it_vanishes():
    gen = torch.zeros(2, 2, requires_grad=True)
    V = published_field(gen, torch.zeros(2, 2))
    assert (V == 0).all()
    assert torch.autograd.grad(V.sum(), gen)[0].isfinite().all()


def test_the_published_field_names_batches_that_do_not_fit():
    with pytest.raises(ValueError, match="leading dimensions"):
        published_field(torch.zeros(5, 2), torch.zeros(4, 5, 2))
