"""The sliced energy field: exact on a line, unbiased, with the stated error, and exact about coincident points."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds
from wgflow import SlicedEnergyField, energy_field, sliced_energy_field
from wgflow.fields.sliced import _directions


def constant(dim):
    return math.sqrt(math.pi) * math.gamma((dim + 1) / 2) / math.gamma(dim / 2)


def sphere(n, dim, g):
    return torch.nn.functional.normalize(
        torch.randn(n, dim, generator=g, dtype=torch.float64), dim=-1
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def single_pairs(dim, directions, n=2000):
    """Estimates of n random unit vectors: one positive at u from 0, and a negative on the point itself."""
    u, x = sphere(n, dim, seeded(1)), torch.zeros(n, 1, dim, dtype=torch.float64)
    V = sliced_energy_field(x, u[:, None], x, directions=directions, generator=seeded(2))
    return u, V[:, 0]


@given(c=clouds(dim=1), own=st.booleans())
def test_on_a_line_the_sliced_field_is_the_energy_field(c, own):
    """With ties, weights of 0 and any number of directions; so are its derivatives in the weights."""
    x, neg = torch.cat([c.x, c.x + 1], -2), None if own else c.neg
    weights = [c.wp] if own else [c.wp, c.wn]

    def derivatives(field, **more):
        at = [w.clone().requires_grad_() for w in weights]
        V = field(x, c.pos, neg, pos_weights=at[0], neg_weights=None if own else at[1], **more)
        return V, torch.autograd.grad(V.square().sum(), at)

    (V, slopes), (exact, exact_slopes) = (
        derivatives(sliced_energy_field, directions=3),
        derivatives(energy_field),
    )
    assert_close(V, exact)
    if (
        c.wp > 0
    ).all():  # the exact field has no slope at 0 where all other samples lie on the point
        for slope, exact_slope in zip(slopes, exact_slopes, strict=True):
            assert_close(slope, exact_slope)


@pytest.mark.parametrize("dim", [2, 4, 10])
def test_estimates_of_a_unit_vector_are_unbiased_with_the_stated_variance(dim):
    """E|V - u|² = (c_D² - D) / S: over u uniform on the sphere, any frame sees what a random frame sees of one u."""
    u, V = single_pairs(dim, directions=dim)
    assert (V * u).sum(-1).mean().item() == pytest.approx(1, abs=0.02)
    assert_close(V.norm(dim=-1), torch.full_like(V[:, 0], constant(dim) / math.sqrt(dim)))
    error = (V - u).square().sum(-1).mean().item()
    assert error == pytest.approx(constant(dim) ** 2 / dim - 1, rel=0.15)


@pytest.mark.parametrize("directions", [1, 2, 7, 64])
def test_equal_angles_in_the_plane_err_by_half_a_step_at_most(directions):
    a = math.pi / (2 * directions)
    u, V = single_pairs(2, directions)
    worst = math.sqrt((a / math.sin(a)) ** 2 - 2 * a / math.tan(a) + 1)
    assert (V - u).norm(dim=-1).max().item() <= worst + 1e-9
    assert worst <= 1.2 * a


@pytest.mark.parametrize("directions", [1, 16, 256])
def test_a_lattice_on_the_sphere_errs_by_the_stated_power(directions):
    u, V = single_pairs(3, directions)
    assert (V * u).sum(-1).mean().item() == pytest.approx(1, abs=0.06 / math.sqrt(directions))
    assert (V - u).square().sum(-1).mean().sqrt().item() <= 1.8 * directions**-0.75


def test_the_lattice_is_turned_uniformly():
    """E ξ ξᵀ = 1/3: the Q of a QR decomposition alone misses it by .024."""
    g = seeded()
    xi = torch.cat([_directions(1, 3, g) for _ in range(6000)])
    assert_close(xi.mT @ xi / len(xi), torch.eye(3, dtype=torch.float64) / 3, atol=0.012)


@given(c=clouds(degenerate=False), own=st.booleans())
def test_the_sliced_field_errs_by_its_bound(c, own):
    """Four times the bound of the root mean square: batches, weights and negatives included."""
    dim, count = c.x.shape[-1], 360
    neg = {} if own else {"neg": c.neg, "neg_weights": c.wn}
    V = SlicedEnergyField(count, c.generator)(c.x, c.pos, pos_weights=c.wp, **neg)
    exact = energy_field(c.x, c.pos, pos_weights=c.wp, **neg)
    bound = 2 * math.sqrt((constant(dim) ** 2 - dim) / count)
    assert (V - exact).square().sum(-1).mean().sqrt().item() <= 4 * bound + 1e-9


@pytest.mark.parametrize("n", [2, 5, 33])
@pytest.mark.parametrize("dim", [2, 3, 25])
def test_coincident_points_exert_no_pull(n, dim):
    x = sphere(1, dim, seeded(n)).expand(n, dim)
    V = sliced_energy_field(x, x[:1], generator=seeded())
    assert torch.equal(V, torch.zeros_like(x))


def test_points_get_no_gradient_and_nan_is_refused():
    x = torch.randn(2, 4, 3, generator=seeded()).requires_grad_()
    assert not sliced_energy_field(x, x.detach()).requires_grad
    bad = x.detach().clone()
    bad[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        sliced_energy_field(bad, x.detach())


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("directions = 0", lambda x: SlicedEnergyField(0)),
        ("directions is 2.5", lambda x: sliced_energy_field(x, x, directions=2.5)),
        ("generator is 0", lambda x: SlicedEnergyField(8, 0)),
        ("a single point", lambda x: sliced_energy_field(x[:1], x)),
        ("without neg", lambda x: sliced_energy_field(x, x, neg_weights=x[:, 0])),
        ("all weights of neg are zero", lambda x: sliced_energy_field(x, x, x, neg_weights=0 * x[:, 0])),
    ],
)  # fmt: skip
def test_bad_input_is_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(torch.ones(4, 2))
