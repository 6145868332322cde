"""Losses: where gradients go, and what the value of a normalised loss can and cannot say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import assert_close, clouds
from wgflow import (
    DriftingField,
    DriftingLoss,
    EnergyField,
    Gaussian,
    LikelihoodField,
    SampleQueue,
    drifting_loss,
    energy_field,
    guidance_weight,
    published_field,
    published_magnitudes,
    published_scale,
    regress_onto,
    spread_ratio,
)


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
    report = DriftingLoss(guidance=2.0)(gen, pos, neg)
    weights = torch.full((3, 7), guidance_weight(2.0, gen=6, neg=7))
    assert_close(report.loss, drifting_loss(gen, pos, neg=neg, neg_weights=weights))
    V = published_field(gen.detach(), pos, neg=neg, neg_weights=weights)
    assert_close(report.displacement, V.square().mean().sqrt(), rtol=1e-5)
    assert_close(report.spread, spread_ratio(gen, pos))
    with pytest.raises(ValueError, match="unconditional"):
        DriftingLoss(guidance=2.0)(gen, pos)
    with pytest.raises(ValueError, match="PublishedField"):
        DriftingLoss(EnergyField(), guidance=2.0)
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


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_a_loss_of_images_is_that_of_their_feature_vectors():
    x, pos, neg = images(6, 1, 8, 9).requires_grad_(), images(5, 1, 8, 9), images(4, 1, 8, 9)
    phi = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).requires_grad_(False)
    report = DriftingLoss(features=[phi], guidance=2.0)(x, pos, neg)
    assert_close(report.loss, DriftingLoss(guidance=2.0)(phi(x), phi(pos), phi(neg)).loss)
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


def test_a_queue_names_the_way_to_store_images_without_mixing_them():
    queue, batch = SampleQueue(784, size=8), images(3, 1, 28, 28)
    with pytest.raises(ValueError, match=r"samples\.flatten\(1\).*unflatten\(-1, \(1, 28, 28\)\)"):
        queue.push(batch)
    with pytest.raises(ValueError, match=r"SampleQueue\(784, \.\.\.\)"):
        SampleQueue(28, size=8).push(batch.expand(3, 1, 28, 28)[:, :, :, :28])
    queue.push(batch.flatten(1))
    drawn = queue.draw(5, generator=torch.Generator().manual_seed(0)).unflatten(-1, (1, 28, 28))
    assert all(any(torch.equal(d, image) for image in batch) for d in drawn)


def test_a_queue_keeps_the_newest_of_each_class():
    queue = SampleQueue(1, size=3, classes=2)
    queue.push(torch.arange(5.0)[:, None], torch.zeros(5))
    queue.push(torch.tensor([[10.0]]), torch.tensor([1]))
    g = torch.Generator().manual_seed(0)
    drawn = queue.draw(50, torch.tensor([0, 1, 0]), generator=g)
    assert drawn.shape == (3, 50, 1)
    assert set(drawn[0].flatten().tolist()) == {2.0, 3.0, 4.0}
    assert set(drawn[1].flatten().tolist()) == {10.0}
    assert len(queue) == 4
    back = SampleQueue(1, size=3, classes=2)
    back.load_state_dict(queue.state_dict())
    again = [
        q.draw(5, torch.tensor([0]), generator=torch.Generator().manual_seed(1))
        for q in (queue, back)
    ]
    assert torch.equal(*again)


def test_a_queue_moves_and_is_saved_with_its_module():
    holder = torch.nn.Module()
    holder.queue = SampleQueue(2, size=3)
    holder.double()
    holder.queue.push(torch.ones(2, 2))
    assert holder.queue.draw(4).dtype == torch.float64
    assert set(holder.state_dict()) == {"queue.samples", "queue.pushed"}
    assert repr(holder.queue) == "SampleQueue(2, size=3, classes=1, held=2)"


def test_a_queue_draws_all_its_samples_whatever_the_default_dtype():
    queue = SampleQueue(1, size=1000)
    queue.push(torch.arange(1000.0)[:, None])
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = queue.draw(20_000, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(drawn.unique()) == 1000


def test_a_queue_of_one_class_needs_no_labels():
    queue = SampleQueue(1, size=2)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert set(queue.draw(40, generator=torch.Generator().manual_seed(0)).flatten().tolist()) == {
        2.0,
        3.0,
    }


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("wanted 0 to 1", lambda q: q.push(torch.zeros(1, 1), torch.tensor([2]))),
        ("missing", lambda q: q.push(torch.zeros(1, 1))),
        ("nothing was pushed", lambda q: q.draw(3, torch.tensor([0]))),
        ("at least one", lambda q: SampleQueue(1, size=0)),
    ],
)  # fmt: skip
def test_bad_queues_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(SampleQueue(1, size=3, classes=2))


@pytest.mark.parametrize("field", [EnergyField(), None], ids=["energy", "published with guidance"])
def test_a_loss_in_feature_space_is_the_loss_of_the_features(field):
    """Data, negatives, displacement and spread are all seen through the map, and several maps are averaged."""
    g = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(4, n, 3, generator=g, dtype=torch.float64) for n in (6, 5, 7))
    maps = [lambda z: z * torch.tensor([1.0, 5.0, 0.2]), lambda z: z[..., :2].tanh()]
    options = {"field": field} if field else {"guidance": 2.0}
    negatives = () if field else (neg,)
    together = DriftingLoss(features=maps, **options)(x, pos, *negatives)
    each = [DriftingLoss(**options)(phi(x), phi(pos), *map(phi, negatives)) for phi in maps]
    for number, found in enumerate(together):
        assert_close(found, (each[0][number] + each[1][number]) / 2)


def test_the_displacement_of_a_report_is_the_rms_of_the_field():
    g = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(4, n, 3, generator=g, dtype=torch.float64) for n in (6, 5))
    V = energy_field(x, pos)
    assert_close(DriftingLoss(EnergyField())(x, pos).displacement, V.square().mean().sqrt())
