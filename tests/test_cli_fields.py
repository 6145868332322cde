"""Laws of the fields that the command line names."""

import pytest
import torch

import wgflow as wg
from wgflow_rl.agents import fields

NORMALIZED = ("published", "likelihood", "energy", "energy:0.25", "mmd-laplace", "sinkhorn", "likelihood+energy+mmd-laplace:0.1")  # fmt: skip # noqa: E501
DISPLACEMENTS = ("drifting", "drifting-relative", "drifting:0.005+drifting:0.05")


def likelihood(h):
    return wg.LikelihoodField(wg.Gaussian(h)).relative().normalized()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("drifting", wg.DriftingField(wg.Gaussian(0.05))),
        ("drifting-relative", wg.DriftingField(wg.Gaussian(0.2)).relative()),
        ("published", wg.PublishedField((0.1,), dimensionless=True)),
        ("published:0.02,0.05", wg.PublishedField((0.02, 0.05), dimensionless=True)),
        ("likelihood", likelihood(0.2)),
        ("energy", wg.EnergyField().normalized()),
        ("sinkhorn:0.1", wg.SinkhornField(0.1).relative().normalized()),
        ("energy:0.25", wg.EnergyField(0.25).normalized()),
        ("mmd-laplace:0.1", (0.1 * wg.MMDField(wg.Laplace(0.1))).relative().normalized()),
        (
            "likelihood:0.3 + energy",
            (likelihood(0.3) + wg.EnergyField().normalized()) / 2,
        ),
    ],
)
def test_a_name_and_its_numbers_are_a_field_of_wgflow(text, field):
    assert fields.parse(text) == field


@pytest.mark.parametrize("name", fields.FIELDS)
def test_a_number_that_is_the_default_changes_nothing(name):
    default = {"drifting": 0.05, "published": 0.1, "energy": 1, "sinkhorn": 0.05}.get(name, 0.2)
    assert fields.parse(f"{name}:{default}") == fields.parse(name)
    assert fields.parse(f"{name}:0.3") != fields.parse(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enrgy", "'enrgy' is not one of " + ", ".join(fields.FIELDS)),
        ("energy+", "'' is not one of"),
        ("likelihood:0", "'0' after 'likelihood' cannot be used: .*positive"),
        ("likelihood:-1", "cannot be used: .*positive"),
        ("likelihood:inf", "cannot be used: .*finite"),
        ("energy:2", "cannot be used: .*beta"),
        ("energy:0.5,0.25", "wanted one number"),
        ("drifting:0.1,0.2", "wanted one number"),
        ("drifting:small", "'small' after 'drifting' cannot be used"),
        ("drifting-relative:0", "cannot be used: .*positive"),
        ("sinkhorn:0", "cannot be used: .*positive"),
        ("mmd-laplace:0", "cannot be used: .*positive"),
        ("published:nan", "cannot be used: .*positive"),
    ],
)
def test_a_field_that_cannot_be_read_is_refused_with_the_part_at_fault(text, message):
    with pytest.raises(ValueError, match=message) as error:
        fields.parse(text)
    assert repr(text) in str(error.value)


def clouds():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=g, dtype=torch.float64)
    return x, torch.randn(6, 2, 4, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("text", NORMALIZED)
def test_a_normalized_field_is_dimensionless_and_its_unnormalized_form_a_length(text):
    x, pos = clouds()
    V = fields.parse(text)
    torch.testing.assert_close(V(3 * x, 3 * pos), V(x, pos))
    raw = fields.unnormalized(V)
    torch.testing.assert_close(raw(3 * x, 3 * pos), 3 * raw(x, pos))


@pytest.mark.parametrize(
    "text", ["published", "likelihood", "energy", "energy:0.25", "mmd-laplace", "sinkhorn"]
)
def test_normalization_changes_the_magnitude_alone(text):
    x, pos = clouds()
    field = fields.parse(text)
    V, raw = field(x, pos), fields.unnormalized(field)(x, pos)
    torch.testing.assert_close(V.square().mean().sqrt(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(raw / raw.square().mean().sqrt(), V)


@pytest.mark.parametrize("text", DISPLACEMENTS)
def test_the_drifting_fields_are_not_normalized(text):
    assert fields.unnormalized(fields.parse(text)) == fields.parse(text)


def test_the_relative_drifting_field_is_a_length():
    x, pos = clouds()
    V = fields.parse("drifting-relative")
    torch.testing.assert_close(V(3 * x, 3 * pos), 3 * V(x, pos))


@pytest.mark.parametrize("h", [0.005, 0.05])
def test_the_drifting_field_has_its_bandwidth_in_action_units(h):
    """V_{3h}(3x) = 3 V_h(x): h is a length like x. And V is Eq. 3, written out."""
    g = torch.Generator().manual_seed(0)
    pos = torch.rand(6, 2, 4, generator=g, dtype=torch.float64)
    x = pos[:, :1] + 2 * h * torch.randn(6, 5, 4, generator=g, dtype=torch.float64)
    V = fields.parse(f"drifting:{h}")(x, pos)
    torch.testing.assert_close(fields.parse(f"drifting:{3 * h}")(3 * x, 3 * pos), 3 * V)

    def mean_shift(y):
        weight = (-torch.cdist(x, y).square() / (2 * h**2)).softmax(-1)
        return weight @ y - x

    torch.testing.assert_close(V, mean_shift(pos) - mean_shift(x))


def test_the_drifting_field_at_the_smallest_published_bandwidth_is_exact_in_float32():
    """h = .005 on a chunk of Robomimic (5 x 7): squared distances of up to 10^6 h^2, where exp alone underflows."""
    g = torch.Generator().manual_seed(0)
    near = torch.rand(32, 1, 35, generator=g) * 2 - 1
    far = torch.rand(32, 8, 35, generator=g) * 2 - 1
    close = near + 0.005 * torch.randn(32, 8, 35, generator=g)
    field = fields.parse("drifting:0.005+drifting:0.05")
    for x in (far, close):
        for pos in (near, torch.cat([near, far[:, :3] + 0.004], 1)):
            V, exact = field(x, pos), field(x.double(), pos.double())
            assert V.dtype == torch.float32
            assert V.isfinite().all()
            torch.testing.assert_close(V.double(), exact, rtol=1e-5, atol=1e-6)
