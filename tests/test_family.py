"""Laws that tell the fields of the family apart: rest on the support, far modes, mass that has left."""

import pytest
import torch

from wgflow import (
    ChiSquare,
    ConservativeField,
    DriftingField,
    EnergyField,
    ForwardKL,
    Gaussian,
    Laplace,
    LikelihoodField,
    MMDField,
    PublishedField,
    SinkhornField,
    epanechnikov,
)

NORMALISED = [
    DriftingField(Gaussian(0.7)),
    DriftingField(Laplace(0.7)),
    DriftingField(Gaussian(0.7), ForwardKL() + ChiSquare()),
    ConservativeField(Laplace(0.7)),
    LikelihoodField(Gaussian(0.7)),
]
CONSERVING = [EnergyField(), MMDField(Gaussian(0.7)), SinkhornField(0.5)]


@pytest.mark.parametrize("field", [*NORMALISED, *CONSERVING, PublishedField((0.2,))], ids=str)
def test_points_midway_between_two_atoms_are_at_rest_under_every_field(field):
    """By symmetry V(0) = 0 although p is ½(δ_-1 + δ_1) and q is δ_0: V = 0 on the support of q alone says little."""
    x = torch.zeros(2, 1, dtype=torch.float64)
    pos = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    assert field(x, pos).abs().max() < 1e-12
    if not isinstance(field, LikelihoodField | PublishedField | SinkhornField):
        away = torch.tensor([[0.3]], dtype=torch.float64)
        assert field(away, pos, neg=x).abs().max() > 1e-3


@pytest.mark.parametrize(("kernel", "sees"), [(epanechnikov(1.0), False), (Laplace(1.0), True)])
def test_a_kernel_of_finite_range_does_not_see_the_shares_of_far_modes(kernel, sees):
    x = torch.linspace(-1, 4, 21, dtype=torch.float64).unsqueeze(-1)
    modes = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    fields = [
        DriftingField(kernel)(x, modes, neg=x, pos_weights=torch.tensor([w, 1 - w]).double())
        for w in (0.5, 0.1)
    ]
    assert ((fields[0] - fields[1]).abs().max() > 1e-3) == sees


@pytest.mark.parametrize("field", [*NORMALISED, *CONSERVING], ids=str)
def test_fields_of_normalised_kernel_sums_do_not_see_mass_that_has_left(field):
    """One point of nine is far from p and from the others: is the field of those another one?"""
    g = torch.Generator().manual_seed(0)
    pos = torch.randn(8, 2, generator=g, dtype=torch.float64)
    gone = torch.cat([pos, torch.full((1, 2), 60.0, dtype=torch.float64)])
    neg = {} if isinstance(field, LikelihoodField) else {"neg": pos}
    neg_gone = {} if isinstance(field, LikelihoodField) else {"neg": gone}
    change = (field(gone, pos, **neg_gone)[:8] - field(pos, pos, **neg)).abs().max().item()
    assert change < 1e-9 if field in NORMALISED else change > 1e-2
