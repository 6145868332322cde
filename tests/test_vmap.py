"""Fields and targets under `torch.func.vmap` are what they are called one by one; checks of values wait outside."""

import pytest
import torch
from torch.func import jvp, vmap

import wgflow as wg
from wgflow.kernels import Riesz

S, B, N, P, D = 3, 4, 5, 2, 3
FIELDS = {
    "drifting": lambda x, pos, w: wg.drifting_field(
        x, pos, x, kernel=wg.Gaussian(0.7), pos_weights=w
    ),
    "weighted": lambda x, pos, w: wg.drifting_field(
        x, pos, x, kernel=wg.Gaussian(0.7), divergence=wg.ForwardKL(), pos_weights=w
    ),
    "likelihood": lambda x, pos, w: wg.likelihood_field(
        x, pos, kernel=wg.Laplace(0.7), pos_weights=w
    ),
    "energy": lambda x, pos, w: wg.energy_field(x, pos, pos_weights=w),
    "published": lambda x, pos, w: wg.published_field(x, pos, pos_weights=w),
    "sinkhorn": lambda x, pos, w: wg.sinkhorn_field(x, pos, epsilon=0.5, pos_weights=w),
    "relative and normalized": lambda x, pos, w: (
        wg.LikelihoodField(wg.Gaussian(0.2)).relative().normalized()(x, pos, pos_weights=w)
    ),
    "tilt": lambda x, pos, w: wg.boltzmann_weights(x[..., 0] + w.sum(), alpha=0.3),
}


def clouds():
    g = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(S, B, n, D, generator=g, dtype=torch.float64) for n in (N, P))
    return x, pos, torch.rand(S, B, P, generator=g, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (None, None, 0)], ids=str
)
def test_mapping_is_calling_one_by_one(name, dims):
    args = [t if dim == 0 else t[0] for t, dim in zip(clouds(), dims, strict=True)]
    rows = [[t[s] if dim == 0 else t for t, dim in zip(args, dims, strict=True)] for s in range(S)]
    mapped = vmap(FIELDS[name], in_dims=dims)(*args)
    torch.testing.assert_close(mapped, torch.stack([FIELDS[name](*row) for row in rows]))


def test_many_pairs_are_mapped_though_alone_they_are_summed_in_blocks():
    x = torch.randn(2, 400, 2, generator=torch.Generator().manual_seed(0))
    assert wg.explain_backend(x[0], x[0], kernel=Riesz(1.0)).backend == "blocked"
    torch.testing.assert_close(
        vmap(wg.energy_field)(x, x), torch.stack([wg.energy_field(a, a) for a in x])
    )


def test_a_transform_inside_the_map_changes_nothing():
    x, pos, w = clouds()

    def derivative(x, pos, w):
        return jvp(lambda x: FIELDS["tilt"](x, pos, w), (x,), (x.cos(),))[1]

    one_by_one = torch.stack([derivative(*row) for row in zip(x, pos, w, strict=True)])
    torch.testing.assert_close(vmap(derivative)(x, pos, w), one_by_one)


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_check_refuses_comes_out_of_a_map_as_nan_of_its_own_row(name):
    x, pos, w = clouds()
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        FIELDS[name](x[1], pos[1], w[1])
    bad = vmap(FIELDS[name])(x, pos, w).isnan().flatten(1).any(1)
    assert bad.tolist() == [False, True, False]
