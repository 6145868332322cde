"""Fields as values: the algebra of sums, multiples, normalised and relative fields, and what every value obeys."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds, rotation
from wgflow import (
    KDE,
    BlobField,
    ChiSquare,
    ConservativeField,
    DriftingField,
    EnergyField,
    Gaussian,
    JensenShannon,
    Laplace,
    LikelihoodField,
    MMDField,
    NystromAverage,
    NystromField,
    PublishedField,
    SinkhornField,
    SlicedEnergyField,
    SphereField,
    SteinField,
    blob_field,
    conservative_field,
    drifting_field,
    energy_field,
    likelihood_field,
    mmd_field,
    published_field,
    published_scale,
    sinkhorn_field,
    stein_field,
)

K = Gaussian(0.7)
SCALES = (Gaussian(0.5), Laplace(1.0))
VALUES = [
    DriftingField(K),
    DriftingField(SCALES, JensenShannon(), skip_self=True),
    LikelihoodField(K),
    EnergyField(),
    EnergyField(0.5),
    MMDField(SCALES),
    PublishedField((0.1, 0.3)),
    SinkhornField(0.5),
    ConservativeField(SCALES),
    BlobField(K),
    SteinField(K),
]
# x, pos, neg, weights of pos, weights of neg -> the function that each value calls
FUNCTIONS = {
    DriftingField(K): lambda x, y, z, p, n: drifting_field(
        x, y, x if z is None else z, kernel=K, pos_weights=p, neg_weights=n
    ),
    EnergyField(0.5): lambda x, y, z, p, n: energy_field(
        x, y, z, beta=0.5, pos_weights=p, neg_weights=n
    ),
    MMDField(K): lambda x, y, z, p, n: mmd_field(x, y, z, kernel=K, pos_weights=p, neg_weights=n),
    PublishedField((0.1,)): lambda x, y, z, p, n: published_field(
        x, y, neg=z, temperatures=(0.1,), pos_weights=p, neg_weights=n
    ),
    SinkhornField(0.5, 3): lambda x, y, z, p, n: sinkhorn_field(
        x, y, z, epsilon=0.5, iterations=3, pos_weights=p, neg_weights=n
    ),
    ConservativeField(K): lambda x, y, z, p, n: conservative_field(
        x, y, x if z is None else z, kernel=K, pos_weights=p, neg_weights=n
    ),
    LikelihoodField(K): lambda x, y, z, p, n: likelihood_field(x, y, kernel=K, pos_weights=p),
    BlobField(K): lambda x, y, z, p, n: blob_field(x, KDE(y, K, p).score, kernel=K),
    SteinField(K): lambda x, y, z, p, n: stein_field(x, KDE(y, K, p).score, kernel=K),
}
every = pytest.mark.parametrize("field", VALUES, ids=str)


def rms(V):
    return V.square().mean().sqrt()


@pytest.mark.parametrize("field", FUNCTIONS, ids=str)
@given(c=clouds(degenerate=False))
def test_a_value_is_its_function(field, c):
    function = FUNCTIONS[field]
    assert torch.equal(field(c.x, c.pos, pos_weights=c.wp), function(c.x, c.pos, None, c.wp, None))
    if not isinstance(field, LikelihoodField | BlobField | SteinField):
        V = field(c.x, c.pos, neg=c.neg, pos_weights=c.wp, neg_weights=c.wn)
        assert torch.equal(V, function(c.x, c.pos, c.neg, c.wp, c.wn))


@pytest.mark.parametrize(
    "field",
    [
        DriftingField(K),
        DriftingField(K, JensenShannon() + ChiSquare()),
        DriftingField(SCALES),
        ConservativeField(SCALES),
        SinkhornField(0.5),
    ],
    ids=str,
)
@given(c=clouds(degenerate=False))
def test_a_drift_vanishes_where_the_points_are_the_data(field, c):
    """Each point is among its own negatives, as in Eq. 3, so attraction and repulsion are one."""
    assert_close(field(c.x, c.x), torch.zeros_like(c.x))


@pytest.mark.parametrize(
    "field", [EnergyField(), EnergyField(0.5), MMDField(SCALES), SlicedEnergyField(9)], ids=str
)
@given(c=clouds(degenerate=False))
def test_a_linear_field_vanishes_where_negatives_are_the_positives(field, c):
    assert_close(field(c.x, c.pos, neg=c.pos), torch.zeros_like(c.x))


@pytest.mark.parametrize("field", [EnergyField(), MMDField(K)], ids=str)
@given(c=clouds(degenerate=False))
def test_the_field_at_its_own_data_is_the_missing_own_pair(field, c):
    """pos = x: the own pair counts in the mean of the attraction (as a zero vector), not in that of the repulsion."""
    own_pair_left_out = field(c.x, c.pos) - field(c.x, c.pos, neg=c.x)
    assert_close(field(c.x, c.x), own_pair_left_out)


@every
@given(c=clouds(degenerate=False))
def test_values_are_equivariant(field, c):
    R, by = rotation(c.x.shape[-1], c.generator), c.rand(c.x.shape[-1])
    V = field(c.x, c.pos, pos_weights=c.wp)
    moved = field(c.x @ R + by, c.pos @ R + by, pos_weights=c.wp)
    assert_close(moved, V @ R, rtol=1e-6, atol=1e-7)


@every
@given(c=clouds(degenerate=False), unit=st.floats(0.01, 100.0))
def test_a_relative_field_is_a_length(field, c, unit):
    V = field.relative()(c.x, c.pos, pos_weights=c.wp)
    scaled = field.relative()(unit * c.x, unit * c.pos, pos_weights=c.wp)
    assert_close(scaled, unit * V, rtol=1e-6, atol=1e-8 * unit)


@given(c=clouds(degenerate=False))
def test_relative_lengths_are_fractions_of_the_mean_distance(c):
    w = c.wp / c.wp.sum(-1, keepdim=True)
    s = (torch.cdist(c.x, c.pos) * w.unsqueeze(-2)).sum(-1).mean().item()
    V = DriftingField(Gaussian(0.2)).relative()(c.x, c.pos, neg=c.neg, pos_weights=c.wp)
    plain = drifting_field(c.x, c.pos, c.neg, kernel=Gaussian(0.2 * s), pos_weights=c.wp)
    assert_close(V, plain, rtol=1e-7, atol=1e-9)


@every
@given(c=clouds(degenerate=False), factor=st.floats(0.01, 100.0))
def test_a_normalized_field_has_unit_rms_whatever_its_magnitude(field, c, factor):
    V = field(c.x, c.pos)
    assume(min(factor, 1) * rms(V) > 1e-7)  # above the floor
    normalized = field.normalized()(c.x, c.pos)
    assert_close(normalized * rms(V), V)
    assert_close((factor * field).normalized()(c.x, c.pos), normalized)


def test_the_rms_of_a_normalized_field_is_one_number_for_the_batch():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, 2, generator=g), torch.randn(3, 4, 2, generator=g)
    V = EnergyField().normalized()(x, y + torch.tensor([0.0, 3.0, 9.0])[:, None, None])
    assert rms(V).item() == pytest.approx(1.0, rel=1e-6)
    assert rms(V[0]).item() < 0.9


def test_a_vanishing_field_is_not_scaled_up_and_keeps_a_gradient():
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    V = DriftingField(K).normalized()(x, torch.zeros(2, 2, dtype=torch.float64))
    assert (V == 0).all()
    assert torch.autograd.grad(V.sum(), x)[0].isfinite().all()


@given(c=clouds(degenerate=False), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_mixtures_are_linear(c, a, b):
    one, other = DriftingField(K), EnergyField()
    V, W = (f(c.x, c.pos, neg=c.neg, neg_weights=c.wn) for f in (one, other))
    mixed = (a * one + other * b)(c.x, c.pos, neg=c.neg, neg_weights=c.wn)
    assert_close(mixed, a * V + b * W)
    assert_close((one - other / 2)(c.x, c.pos, neg=c.neg, neg_weights=c.wn), V - W / 2)


def test_the_algebra_has_a_normal_form():
    a, b = LikelihoodField(K), EnergyField()
    assert 0.5 * (a + b) == 0.5 * a + 0.5 * b == (a + b) / 2
    assert sum([a, b]) == a + b
    assert (a + b) + a == a + (b + a)
    assert -a == -1 * a
    assert a.normalized().normalized() == a.normalized()
    assert a.relative().relative() == a.relative()


@every
def test_values_are_compared_hashed_and_printed(field):
    import wgflow

    names = {name: getattr(wgflow, name) for name in wgflow.__all__}
    for value in (field, field.relative().normalized(), 0.5 * field + EnergyField()):
        assert eval(repr(value), names) == value
        assert hash(eval(repr(value), names)) == hash(value)
    assert len({field, *VALUES}) == len(VALUES)


def test_kernels_are_one_or_several():
    assert MMDField([K]) == MMDField(K)
    assert MMDField([K, Laplace(1.0)]) == MMDField((K, Laplace(1.0)))


@given(c=clouds(batch=False, degenerate=False))
def test_several_kernels_are_a_sum_of_fields(c):
    for kind in (
        DriftingField,
        ConservativeField,
        LikelihoodField,
        MMDField,
        BlobField,
        SteinField,
    ):
        together = kind(SCALES)(c.x, c.pos, pos_weights=c.wp)
        apart = (kind(SCALES[0]) + kind(SCALES[1]))(c.x, c.pos, pos_weights=c.wp)
        assert_close(together, apart)


@given(c=clouds(degenerate=False))
def test_the_published_field_has_coordinates_of_its_own(c):
    field = PublishedField((0.1,))
    V, unit, _ = field.in_own_unit(c.x, c.pos, neg=c.neg)
    assert_close(unit, published_scale(c.x, c.pos, neg=c.neg))
    assert_close(V * unit, field(c.x, c.pos, neg=c.neg))
    assert_close(V, PublishedField((0.1,), dimensionless=True)(c.x, c.pos, neg=c.neg))
    assert rms(V).item() == pytest.approx(1.0)


@given(c=clouds(dim=2, batch=False))
def test_a_known_score_replaces_the_positives(c):
    score = lambda x: -x
    assert_close(BlobField(K, score)(c.x, None), blob_field(c.x, score, kernel=K))
    assert_close(SteinField(K, score)(c.x, None), stein_field(c.x, score, kernel=K))


X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("epsilon = 0", lambda: SinkhornField(0.0)),
        ("iterations = -1", lambda: SinkhornField(1.0, iterations=-1)),
        ("tolerance = 0", lambda: SinkhornField(1.0, tolerance=0.0)),
        ("without neg", lambda: SinkhornField(1.0)(X, X, neg_weights=torch.ones(4))),
        ("neg was passed to a LikelihoodField", lambda: LikelihoodField(K)(X, X, neg=X)),
        ("neg_weights was passed to a SteinField", lambda: SteinField(K)(X, X, neg_weights=X[:, 0])),
        ("without neg", lambda: DriftingField(K)(X, X, neg_weights=torch.ones(4))),
        ("without neg", lambda: MMDField(K)(X, X, neg_weights=torch.ones(4))),
        ("score of its own", lambda: BlobField(K, lambda x: -x).relative()),
        ("kernel is empty", lambda: DriftingField([])),
        ("kernel is 0.5", lambda: LikelihoodField(0.5)),
        ("beta = 2", lambda: EnergyField(2.0)),
        ("temperatures", lambda: PublishedField((0.1, -1.0))),
        ("pos has dimension", lambda: EnergyField().relative()(X, torch.zeros(3, 5))),
        ("x is a numpy array", lambda: EnergyField().relative()(X.numpy(), X)),
        ("all weights of pos are zero", lambda: EnergyField().relative()(X, X, pos_weights=torch.zeros(4))),
    ],
)  # fmt: skip
def test_bad_values_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()


FIXED = {
    "blob": BlobField(K, lambda x: -x),
    "stein": SteinField(K, lambda x: -x),
    "nystrom": NystromField(NystromAverage(X, X, K)),
}
AROUND = {
    "alone": lambda f: f,
    "multiple": lambda f: 2 * f,
    "sum": lambda f: EnergyField() + f,
    "normalized": lambda f: f.normalized(),
    "normalized sum": lambda f: (f + EnergyField()).normalized(),
    "on the sphere": SphereField,
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("scaling", ["relative", "standardized"])
def test_lengths_of_x_are_made_relative_nowhere(name, around, scaling):
    """A score of one's own or a fixed cloud would be read at scaled points, silently."""
    field = AROUND[around](FIXED[name])
    with pytest.raises(ValueError, match=r"own|fixed cloud|sphere"):
        getattr(field, scaling)()


@pytest.mark.parametrize("other", [3, "energy", None, K], ids=str)
def test_only_fields_are_added(other):
    with pytest.raises(TypeError):
        EnergyField() + other
    with pytest.raises(TypeError):
        EnergyField() * EnergyField()
