"""Fields and targets under `torch.func.vmap` are what they are called one by one; checks of values wait outside."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

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


K = wg.Gaussian(0.7)
SCALARS = {
    **{
        name: lambda x, pos, w, field=field: (field(x, pos, w) * x.detach().cos()).sum()
        for name, field in FIELDS.items()
        if name not in ("tilt", "sinkhorn")  # no cloud, no second derivative
    },
    "log density": lambda x, pos, w: wg.KDE(pos, K, weights=w).log_density(x).sum(),
    "score": lambda x, pos, w: wg.KDE(pos, wg.Laplace(0.7), weights=w).score(x).square().sum(),
    "debiased density": lambda x, pos, w: wg.KDE(pos, K).debiased().log_density(x).sum(),
    "conservative": lambda x, pos, w: (
        wg.ConservativeField(wg.Matern(0.7, 2.5))(x, pos, pos_weights=w).pow(3).sum()
    ),
    "blob": lambda x, pos, w: wg.BlobField(K)(x, pos).pow(3).sum(),
    "stein": lambda x, pos, w: wg.SteinField(K)(x, pos).pow(3).sum(),
    "mmd": lambda x, pos, w: wg.mmd2(x, pos, kernel=K),
    "energy distance": lambda x, pos, w: wg.energy_distance(x, pos),
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("of", [0, 1], ids=["x", "pos"])
def test_hessians_by_transforms_are_those_by_autograd(name, of):
    """In torch 2.13 `vmap` of the derivative of `torch.cdist`, of which jacrev makes a Hessian, is wrong."""
    args = list(clouds())

    def scalar(point, s):
        own = [t[s, 0] for t in args]
        own[of] = point
        return SCALARS[name](*own)

    for s in range(2):
        point = args[of][s, 0]
        expected = torch.autograd.functional.hessian(lambda t, s=s: scalar(t, s), point)
        for transform in (jacrev(grad(scalar)), jacrev(jacrev(scalar))):
            torch.testing.assert_close(transform(point, s), expected, rtol=1e-8, atol=1e-9)
    many = vmap(jacrev(grad(lambda t: scalar(t, 0))))(args[of][:, 0])
    for point, found in zip(args[of][:, 0], many, strict=True):
        one = torch.autograd.functional.hessian(lambda t: scalar(t, 0), point)
        torch.testing.assert_close(found, one, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("of", ["x", "pos", "weights"])
@pytest.mark.parametrize("name", ["log density", "score", "energy", "drifting", "conservative"])
def test_forward_mode_is_refused_and_not_silently_wrong(name, of):
    x, pos, w = (t[0, 0] for t in clouds())
    given = {"x": x, "pos": pos, "weights": w}
    with forward_ad.dual_level():
        given[of] = forward_ad.make_dual(given[of], torch.ones_like(given[of]))
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            SCALARS[name](*given.values())
