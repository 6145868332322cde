"""Bad input of every public function: a ValueError that names what came, never a silent number."""

import math

import pytest
import torch

import wgflow as wg
from tests.public_calls import CALLS
from tests.strategies import assert_close
from wgflow.testing import gaussians

# What does not read the second cloud, or reads it as values of candidates: `test_targets.py` and others have these.
ALONE = {
    "Annealed",
    "Interaction",
    "Potential",
    "guidance_weight",
    "draw_guidance",
    "patch_features",
    "SampleQueue",
    "total_variation",
}
VALUES = {
    "boltzmann_weights", "importance_weights", "top_k_weights", "level_set_weights", "matched_temperature",
    "effective_sample_size",
}  # fmt: skip
ONE_CLOUD = {
    "scott",
    "silverman",
    "median_heuristic",
    "leave_one_out",
    "per_dimension",
    "full_matrix",
}
DRAWN = {"Gaussian", "Laplace", "Matern", "RationalQuadratic", "Compact", "flat", "epanechnikov", "biweight", "student_t"}  # fmt: skip # noqa: E501
NAMES = [name for name in CALLS if hasattr(wg, name) and name not in ALONE]
PAIRS = [name for name in NAMES if name not in VALUES | ONE_CLOUD | DRAWN]


def cloud(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PAIRS)
def test_clouds_of_different_dimension_are_refused(name):
    with pytest.raises(ValueError, match=r"dimension|\[N, D\]|same shape|wanted"):
        CALLS[name](cloud(0, 6, 2), cloud(1, 6, 3))


NO_CLOUD = {"regress_onto"}  # any shape


@pytest.mark.parametrize("name", [n for n in [*PAIRS, *sorted(ONE_CLOUD)] if n not in NO_CLOUD])
def test_images_are_not_read_as_clouds_of_their_rows(name):
    images = cloud(0, 4, 1, 28, 28)
    with pytest.raises(ValueError, match=r"images|Images|\[N, D\]|\[M, D\]"):
        CALLS[name](images, images)


@pytest.mark.parametrize("name", PAIRS)
def test_clouds_of_different_dtypes_are_refused(name):
    with pytest.raises(ValueError, match=r"dtype"):
        CALLS[name](cloud(0, 6, 2), cloud(1, 6, 2).double())


@pytest.mark.parametrize(
    "name",
    [n for n in PAIRS if n not in ("KDE", "BlobKL", "blob_field", "stein_field")],
)
def test_clouds_on_different_devices_are_refused(name):
    with pytest.raises(ValueError, match=r"is on cpu|on meta"):
        CALLS[name](cloud(0, 6, 2), cloud(1, 6, 2).to("meta"))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in VALUES])
def test_an_empty_cloud_is_refused(name):
    with pytest.raises(ValueError, match=r"empty|at least|one size|coincide|wanted"):
        CALLS[name](cloud(0, 6, 2), cloud(1, 6, 2)[:0])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "explain_backend"])
def test_not_a_number_is_refused(name):
    y = cloud(1, 6, 2)
    y[0, 0] = math.nan
    if name == "effective_sample_size":
        y = cloud(1, 6, 2)
        with pytest.raises(ValueError, match="NaN"):
            wg.effective_sample_size(y[:, 0] * math.nan)
        return
    with pytest.raises(ValueError, match=r"NaN|infinity|spread|coincide"):
        CALLS[name](cloud(0, 6, 2), y)


def test_no_points_have_no_velocities():
    """N = 0: the empty answer of every backend and kernel, with its graph."""
    x, y = torch.zeros(3, 0, 2, dtype=torch.float64, requires_grad=True), cloud(0, 3, 4, 2).double()
    for kernel in (wg.Gaussian(1.0), wg.Laplace(1.0), wg.Gaussian([1.0, 2.0])):
        for backend in ("auto", "dense", "blocked"):
            log_mass, shift = wg.kernel_shift(x, y, kernel=kernel, backend=backend)
            assert log_mass.shape == (3, 0)
            assert shift.shape == (3, 0, 2)
            (grad,) = torch.autograd.grad(shift.sum(), x)
            assert grad.shape == x.shape
    assert wg.mean_shift(x, y, kernel=wg.Gaussian(1.0)).shape == (3, 0, 2)


def test_a_batch_of_clouds_has_an_energy_distance_each():
    x, y = cloud(0, 2, 3, 5, 2).double(), cloud(1, 3, 4, 2).double()
    together = wg.energy_distance(x, y)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert_close(together[i, j], wg.energy_distance(x[i, j], y[j]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distances_of_halves_are_those_of_their_values(dtype):
    x, y = cloud(0, 30, 2).to(dtype), cloud(1, 20, 2).to(dtype)
    found, exact = wg.energy_distance(x, y), wg.energy_distance(x.double(), y.double())
    assert found.dtype == dtype
    assert found.double() == pytest.approx(exact.item(), rel=torch.finfo(dtype).eps)


def test_the_published_objective_measures_its_distances_once(monkeypatch):
    """A loss with its report: one scale, not one for the loss, one for the field and one for the report."""
    from wgflow.fields import published

    seen, measure = [], published._distances
    monkeypatch.setattr(published, "_distances", lambda *a: seen.append(1) or measure(*a))
    x, y = cloud(0, 3, 6, 2), cloud(1, 3, 5, 2)
    wg.DriftingLoss()(x, y)
    wg.drifting_loss(x, y)
    assert len(seen) == 2


def test_rounding_does_not_make_equal_clouds_differ():
    """float32: the three means of an MMD cancel in float64, and only their difference is rounded."""
    x = cloud(0, 400, 2)
    single = wg.mmd2(x, x, kernel=wg.Gaussian(0.5)).double()
    exact = wg.mmd2(x.double(), x.double(), kernel=wg.Gaussian(0.5))
    assert (single - exact).abs() < 1e-9


X = cloud(0, 6, 2)
ONES = torch.ones(6)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("pos_weights are", lambda: wg.published_field(X, X, pos_weights=torch.ones(5))),
        ("pos_weights are", lambda: wg.published_field(X, X, pos_weights=ONES.double())),
        ("x_weights are", lambda: wg.published_field(X, X, x_weights=torch.ones(2, 6))),
        ("pos_weights hold a negative", lambda: wg.published_field(X, X, pos_weights=-ONES)),
        ("neg_weights hold a negative", lambda: wg.published_field(X, X, neg=X, neg_weights=ONES * math.nan)),
        ("nothing attracts", lambda: wg.published_field(X, X, pos_weights=0 * ONES)),
        ("without neg", lambda: wg.published_field(X, X, neg_weights=ONES)),
        ("negative", lambda: wg.published_scale(X, X, x_weights=-ONES)),
        ("NaN", lambda: wg.published_field(X, X / 0)),
        ("x is empty", lambda: wg.published_field(X[:0], X)),
        ("compact support", lambda: wg.kde_kl(100 * X, X, kernel=wg.flat(0.01))),
        ("radius", lambda: wg.mode_coverage(X, X, radius=0.0)),
        ("once per cloud", lambda: wg.mode_coverage(X[None], X[None], radius=1.0)),
        ("once per cloud", lambda: wg.mode_proportions(X[None], X[None])),
        ("empty", lambda: wg.mode_proportions(X[:0], X)),
        ("empty", lambda: wg.sliced_w2(X[:0], X)),
        ("n, D", lambda: wg.mmd2(X, X[0], kernel=wg.Gaussian(1.0))),
        ("n, D", lambda: wg.kde_kl(X[0], X, kernel=wg.Gaussian(1.0))),
        ("n, D", lambda: wg.DriftingLoss()(X, X[0])),
        ("empty", lambda: wg.regress_onto(X[:0], X[:0])),
        ("floating", lambda: wg.top_k_weights(torch.arange(5), k=2)),
        ("infinity", lambda: wg.boltzmann_weights(torch.tensor([1.0, math.inf]), alpha=1.0)),
        ("infinity", lambda: wg.importance_weights(torch.full((2,), -math.inf), torch.zeros(2))),
        ("same points", lambda: wg.total_variation(ONES, torch.ones(5))),
        ("masses", lambda: wg.effective_sample_size(0 * ONES)),
        ("masses", lambda: wg.effective_sample_size(-ONES)),
        ("Flatten", lambda: wg.SampleQueue(2, size=3).push(X[None])),
        ("one integer for each", lambda: wg.SampleQueue(2, size=3, classes=2).push(X, torch.zeros(5))),
        ("samples holds NaN", lambda: wg.KDE(X * math.nan, wg.Gaussian(1.0))),
        ("h = 0", lambda: gaussians.drift(X, (X[0], torch.eye(2)), (X[0], torch.eye(2)), h=0.0)),
        ("covariance", lambda: gaussians.drift(X, (X[0], ONES[:2]), (X[0], ONES[:2]), h=1.0)),
        ("differ", lambda: gaussians.variance_clock(1.0, 1.0, h=0.5)),
        ("finite number", lambda: wg.Alpha(math.nan)),
        ("power", lambda: wg.Compact(1.0, -1)),
        ("wanted >= 1", lambda: wg.guidance_weight(math.nan, gen=3, neg=3)),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call()
