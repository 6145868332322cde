"""Losses: where gradients go, and what the value of a normalised loss can and cannot say."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import ddp_worker
from tests.strategies import assert_close, clouds
from wgflow import (
    DriftingField,
    DriftingLoss,
    EnergyField,
    Gaussian,
    LikelihoodField,
    PublishedField,
    draw_guidance,
    drifting_loss,
    energy_field,
    guidance_weight,
    patch_features,
    published_field,
    published_magnitudes,
    published_scale,
    regress_onto,
    spread_ratio,
)

ROOT = Path(__file__).resolve().parent.parent


@given(clouds(degenerate=False))
def test_a_regression_pulls_only_on_its_first_argument(c):
    x, v = c.x.requires_grad_(), c.rand(*c.x.shape).requires_grad_()
    loss = regress_onto(x, v)
    grad_x, grad_v = torch.autograd.grad(loss, (x, v), allow_unused=True)
    assert grad_v is None
    assert_close(grad_x, -2 * v.detach() / v.numel())
    assert_close(loss.detach(), v.detach().square().mean())


@given(clouds(batch=False, degenerate=False), st.floats(1.0, 1e4))
def test_the_normalised_loss_is_one_at_any_distance_from_the_data(c, distance):
    """One temperature: the rms that normalises is the rms that is measured, so the value of the loss says nothing."""
    gen, pos = torch.stack([c.x, c.neg[:1] + c.x]), torch.stack([c.pos, c.pos]) + distance
    unit = published_scale(gen, pos)
    loss = regress_onto(gen / unit, published_field(gen, pos, temperatures=(0.1,)) / unit)
    assert loss.item() == pytest.approx(1.0, rel=1e-9)


def test_regression_keeps_its_digits_far_from_the_origin():
    x = torch.full((4, 2), 1e4)
    v = torch.full((4, 2), 1e-4)
    assert regress_onto(x, v).item() == pytest.approx(1e-8, rel=1e-6)


def test_drifting_loss_is_the_regression_onto_its_field():
    g = torch.Generator().manual_seed(0)
    gen = torch.randn(4, 6, 2, generator=g, requires_grad=True)
    pos = torch.randn(4, 3, 2, generator=g)
    loss = drifting_loss(gen, pos, field=energy_field)
    assert_close(loss, regress_onto(gen, energy_field(gen, pos)))
    assert loss.requires_grad
    published = drifting_loss(gen, pos, neg=pos + 1)
    (grad,) = torch.autograd.grad(published, gen)
    unit = published_scale(gen.detach(), pos, neg=pos + 1)
    V = published_field(gen.detach(), pos, neg=pos + 1)
    assert_close(grad, -2 * V / unit**2 / V.numel(), rtol=1e-5, atol=1e-7)


def test_a_generator_learns_its_data():
    """An affine generator of 1-D noise finds mean 2 and deviation .5 by energy_field alone."""
    g = torch.Generator().manual_seed(0)
    parameters = torch.tensor([0.0, 1.0], requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=0.02)
    for _ in range(400):
        gen = parameters[0] + parameters[1] * torch.randn(64, 1, generator=g)
        pos = 2 + 0.5 * torch.randn(64, 1, generator=g)
        optimiser.zero_grad()
        drifting_loss(gen, pos, field=energy_field).backward()
        optimiser.step()
    assert parameters[0].item() == pytest.approx(2.0, abs=0.1)
    assert abs(parameters[1].item()) == pytest.approx(0.5, abs=0.1)


def test_bad_losses_are_named():
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match="velocity is"):
        regress_onto(x, x[:2])
    with pytest.raises(ValueError, match="neg was passed"):
        drifting_loss(x, x, neg=x, field=LikelihoodField(Gaussian(1.0)))


@given(clouds(degenerate=False))
def test_the_loss_of_a_field_is_its_mean_square(c):
    field = DriftingField(Gaussian(c.h))
    V = field(c.x, c.pos, neg=c.neg, neg_weights=c.wn)
    loss = drifting_loss(c.x, c.pos, neg=c.neg, neg_weights=c.wn, field=field)
    assert_close(loss, V.square().mean())
    x, pos = (t.flatten(0, -3) if t.dim() > 3 else t for t in (c.x, c.pos))
    assert_close(DriftingLoss(field)(x, pos).loss, field(x, pos).square().mean())


def test_magnitudes_show_what_the_normalised_loss_hides():
    """Generated points on the data or far from it: only the field before its normalisation tells."""
    g = torch.Generator().manual_seed(0)
    pos = torch.randn(16, 8, 2, generator=g)
    near, far = pos + 0.01 * torch.randn(16, 8, 2, generator=g), pos + 3
    sizes = [published_magnitudes(x, pos, temperatures=(0.2,)).item() for x in (near, far)]
    assert sizes[0] < 0.5 * sizes[1]


def test_guidance_moves_the_equilibrium_as_it_says():
    """strength a: negatives are q/a + (1 - 1/a) p_0, so with weights w they are in the ratio 1 : a - 1."""
    w = guidance_weight(3.0, gen=9, neg=4)
    assert 4 * w / (9 - 1) == pytest.approx(3.0 - 1)
    assert guidance_weight(1.0, gen=9, neg=4) == 0
    with pytest.raises(ValueError, match="strength"):
        guidance_weight(0.5, gen=9, neg=4)


def test_a_drifting_loss_reports_what_it_cannot_show():
    g = torch.Generator().manual_seed(0)
    gen = torch.randn(3, 6, 4, generator=g, requires_grad=True)  # 3 classes
    pos, neg = torch.randn(3, 5, 4, generator=g), torch.randn(3, 7, 4, generator=g)
    report = DriftingLoss()(gen, pos, neg, 2.0)
    weights = torch.full((3, 7), guidance_weight(2.0, gen=6, neg=7))
    assert_close(report.loss, drifting_loss(gen, pos, neg=neg, neg_weights=weights))
    magnitudes = published_magnitudes(gen.detach(), pos, neg=neg, neg_weights=weights)
    assert_close(report.displacement, magnitudes.mean(), rtol=1e-5)
    assert_close(report.spread, spread_ratio(gen, pos))
    with pytest.raises(ValueError, match="unconditional"):
        DriftingLoss()(gen, pos, guidance=2.0)
    with pytest.raises(ValueError, match="PublishedField"):
        DriftingLoss(EnergyField())(gen, pos, neg, 2.0)
    with pytest.raises(ValueError, match="empty"):
        DriftingLoss(features=[])


def test_a_drifting_loss_in_feature_space_reaches_the_points():
    g = torch.Generator().manual_seed(0)
    phi = torch.nn.Linear(4, 3).requires_grad_(False)
    gen = torch.randn(5, 6, 4, generator=g, requires_grad=True)
    pos = torch.randn(5, 5, 4, generator=g)
    both = DriftingLoss(EnergyField(), features=[phi, lambda x: x])
    (grad,) = torch.autograd.grad(both(gen, pos).loss, gen)
    V = energy_field(phi(gen.detach()), phi(pos))
    through = -2 * V @ phi.weight / V.numel()
    plain = -2 * energy_field(gen.detach(), pos) / gen.numel()
    assert_close(grad, 0.5 * (through + plain), rtol=1e-4, atol=1e-6)
    assert list(both.state_dict()) == ["features.0.weight", "features.0.bias"]


@pytest.mark.parametrize(
    "features",
    [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.nn.Linear(4, 4), abs],
    ids=["Sequential", "Linear", "function"],
)
def test_features_come_in_a_list(features):
    """A Sequential alone would be a list of layers, each a feature of the points."""
    with pytest.raises(ValueError, match=r"wanted a list .* features=\[network\]"):
        DriftingLoss(EnergyField(), features=features)


@given(clouds(batch=False, degenerate=False), st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_the_weight_of_a_map_counts_it_as_often(c, times):
    maps = [lambda t: t, lambda t: 3 * t, lambda t: t.square()]
    repeated = [phi for phi, n in zip(maps, times, strict=True) for _ in range(n)]
    found = DriftingLoss(EnergyField(), features=maps, weights=times)(c.x, c.pos)
    wanted = DriftingLoss(EnergyField(), features=repeated)(c.x, c.pos)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(
    "weights",
    [
        [],
        [1.0],
        [1.0, 1.0, 1.0],
        [0.0, 0.0],
        [1.0, -1.0],
        [1.0, math.nan],
        [1.0, math.inf],
        [1.0, "a"],
    ],
)
def test_weights_that_do_not_fit_the_maps_are_named(weights):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="one per map"):
        DriftingLoss(EnergyField(), features=[lambda t: [t, t]], weights=weights)(x, x)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_a_loss_of_images_is_that_of_their_feature_vectors():
    x, pos, neg = images(6, 1, 8, 9).requires_grad_(), images(5, 1, 8, 9), images(4, 1, 8, 9)
    phi = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).requires_grad_(False)
    report = DriftingLoss(features=[phi])(x, pos, neg, 2.0)
    assert_close(report.loss, DriftingLoss()(phi(x), phi(pos), phi(neg), 2.0).loss)
    (grad,) = torch.autograd.grad(report.loss, x)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(64, 1, 28, 28), (64, 3, 24, 32), (10, 64, 1, 28, 28)])
@pytest.mark.parametrize("features", [None, [torch.nn.Identity()], [lambda t: t[..., ::2]]])
def test_images_without_feature_vectors_are_refused(shape, features):
    with pytest.raises(ValueError, match=r"wanted points .* features="):
        DriftingLoss(EnergyField(), features=features)(images(*shape), images(*shape))


def test_a_replaced_feature_network_is_the_one_in_use():
    """Tools that convert modules, e.g. for quantisation, assign the new module in the old one's place."""
    loss = DriftingLoss(
        EnergyField(), features=[torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2).eval()]
    )
    x, pos = images(6, 2), images(5, 2)
    phi = torch.nn.Linear(2, 3)
    loss.features[0] = phi
    loss = torch.nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    found = [
        loss.features[1],
        *(m for m in loss.modules() if isinstance(m, torch.nn.SyncBatchNorm)),
    ]
    assert found[0] is found[1]
    one = DriftingLoss(EnergyField(), features=[phi])(x, pos).loss
    two = DriftingLoss(EnergyField(), features=[loss.features[1]])(x, pos).loss
    assert_close(loss(x, pos).loss, (one + two) / 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("field", [EnergyField(), None], ids=["energy", "published with guidance"])
def test_a_loss_in_feature_space_is_the_loss_of_the_features(field):
    """Data, negatives, displacement and spread are all seen through the map, and several maps are averaged."""
    g = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(4, n, 3, generator=g, dtype=torch.float64) for n in (6, 5, 7))
    maps = [lambda z: z * torch.tensor([1.0, 5.0, 0.2]), lambda z: z[..., :2].tanh()]
    field, rest = (field, ()) if field else (PublishedField(), (neg, 2.0))
    together = DriftingLoss(field, features=maps)(x, pos, *rest)
    each = [DriftingLoss(field)(phi(x), phi(pos), *map(phi, rest[:1]), *rest[1:]) for phi in maps]
    for number, found in enumerate(together):
        assert_close(found, (each[0][number] + each[1][number]) / 2)


def test_the_displacement_of_a_report_is_the_rms_of_the_field():
    g = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(4, n, 3, generator=g, dtype=torch.float64) for n in (6, 5))
    V = energy_field(x, pos)
    for field in (EnergyField(), lambda x, pos: energy_field(x, pos)):
        assert_close(DriftingLoss(field)(x, pos).displacement, V.square().mean().sqrt())


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("field", [PublishedField(), EnergyField(0.5).standardized()], ids=repr)
def test_a_map_of_features_is_one_term_with_locations_as_groups(field):
    """Classes x locations are independent groups of points that share one scale and one rms."""
    x, pos, neg = (randn(3, n, 2, 4, 5, seed=n) for n in (6, 5, 7))  # classes of images
    columns = lambda images: images.flatten(2).mT  # [n, 20 locations, 2 channels]
    groups = lambda t: t.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)  # [60, n, 2]
    guided = isinstance(field, PublishedField)
    strength = torch.tensor([1.0, 2.0, 4.0])
    rest = (neg, strength) if guided else ()
    report = DriftingLoss(field, features=[columns])(x, pos, *rest)
    w = guidance_weight(strength.double(), gen=6, neg=7).repeat_interleave(20)[:, None]
    negatives = {"neg": groups(neg), "neg_weights": w.expand(-1, 7)} if guided else {}
    assert_close(report.loss, drifting_loss(groups(x), groups(pos), field=field, **negatives))
    assert_close(
        report.spread,
        spread_ratio(*(columns(t.flatten(0, 1)).mean(1).unflatten(0, (3, -1)) for t in (x, pos))),
    )
    if guided:
        sizes = published_magnitudes(groups(x), groups(pos), **negatives)
        assert_close(report.displacement, sizes.mean())


def test_sets_without_classes_are_shared_by_all_classes():
    x, pos, neg = randn(3, 6, 4), randn(5, 4, seed=1), randn(7, 4, seed=2)
    shared = DriftingLoss()(x, pos, neg, 2.0)
    each = DriftingLoss()(x, pos.expand(3, 5, 4), neg.expand(3, 7, 4), 2.0)
    for a, b in zip(shared, each, strict=True):
        assert_close(a, b)


def test_standardizing_twice_is_standardizing_once():
    for field in (PublishedField(), EnergyField(0.5).standardized()):
        assert field.standardized() == field


def test_a_standardized_field_has_no_units():
    x, pos = randn(3, 6, 4), randn(3, 5, 4, seed=1)
    for field in (EnergyField(0.5).standardized(), LikelihoodField(Gaussian(0.3)).standardized()):
        V, unit, magnitude = field.in_own_unit(x, pos)
        assert V.square().mean().sqrt().item() == pytest.approx(1.0)
        assert_close(V * unit, field(x, pos))
        assert_close(field.field.relative().normalized()(x, pos), V)
        scaled = field.in_own_unit(1e3 * x, 1e3 * pos)
        for a, b in zip(scaled, (V, 1e3 * unit, magnitude), strict=True):
            assert_close(a, b)


def test_strengths_of_guidance_follow_their_law():
    """u = P(strength <= a) is the uniform number that the strength was made from: inversion sampling."""
    for k in (1 + 1e-9, 1 + 1e-5, 1.5, 3.0, 5.0):
        a = draw_guidance(1000, power=k, generator=torch.Generator().manual_seed(0))
        u = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        assert a.min() >= 1 and a.max() <= 4
        share = torch.expm1((1 - k) * a.double().log()) / math.expm1((1 - k) * math.log(4))
        assert_close(share.float(), u, rtol=1e-4, atol=1e-5)


def test_statistics_of_patches_of_a_ramp_and_of_a_constant():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(2, 3, 8, 8)
    full = lambda value, *shape: torch.full(shape, value, dtype=torch.float64)
    everywhere, mean2, std2, mean4, std4, mean, std = patch_features(ramp)
    assert_close(everywhere[0, :8, 0], torch.arange(8.0).double())
    assert_close(mean2[0, :4, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]).double())
    assert_close(std2, full((0.25 + 1e-6) ** 0.5, 2, 16, 3))
    assert_close(mean4[0, :2, 0], torch.tensor([1.5, 5.5]).double())
    assert_close(std4, full((1.25 + 1e-6) ** 0.5, 2, 4, 3))
    assert mean.shape == std.shape == (2, 1, 3)
    assert_close(patch_features(ramp * 0 + 1e3, patches=())[2], full(1e-3, 2, 1, 3))
    with pytest.raises(ValueError, match="patches"):
        patch_features(ramp, patches=(9,))


def test_half_precision_features_count_in_single_precision():
    x, pos = images(6, 1, 4, 4), images(5, 1, 4, 4)
    half = lambda t: t.flatten(1).bfloat16()
    report = DriftingLoss(features=[half])(x, pos)
    assert_close(report.loss, DriftingLoss()(half(x).float(), half(pos).float()).loss)
    assert report.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("says", "call"),
    [
        (r"features\[0\]\(pos\) holds NaN", lambda f: f(images(6, 1, 4, 4), images(5, 1, 4, 4) / 0)),
        (r"has \(classes, locations\) = \[3", lambda f: f(images(2, 6, 1, 4, 4), images(3, 5, 1, 4, 4))),
        ("guidance is", lambda f: f(*[images(2, 6, 1, 4, 4)] * 3, torch.ones(3))),
        ("strength", lambda f: f(*[images(6, 1, 4, 4)] * 3, torch.tensor([0.5]))),
    ],
)  # fmt: skip
def test_bad_images_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(DriftingLoss(features=[torch.nn.Flatten()]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs gloo and the loopback device")
def test_two_processes_with_half_a_batch_each_learn_as_one(tmp_path):
    """Losses of shares under DistributedDataParallel: the mean gradient is that of the whole batch on one process."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.ddp_worker", str(tmp_path / "store"), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=env) for rank in range(2)]
    assert [p.wait(timeout=300) for p in running] == [0, 0]
    for name, (gradients, rest) in ddp_worker.results(0, 1, None).items():
        for rank in range(2):
            shared, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[name]
            for a, b in zip((*shared, *found), (*gradients, *rest), strict=True):
                assert_close(a, b, rtol=1e-9, atol=1e-12)
