"""Fields and losses under torch.compile: one graph without breaks, with the values and gradients of eager calls."""

import pytest
import torch

import wgflow as wg
from wgflow.reductions import sharding

# An agent's batch: states, points and positives per state, coordinates of a chunk.
B, G, P, D = 64, 8, 3, 4
K = wg.Gaussian(1.0)
# KeOps, SinkhornField, fields that draw (sliced), choose rows (Nyström) or refuse points by value (sphere), and the
# solvers that iterate to a tolerance (Sinkhorn, w2, integrate) are not compiled.
UNCOMPILED = {"NystromAverage", "NystromField", "SinkhornField", "SlicedEnergyField", "SphereField"}
FIELDS = {
    "energy": wg.EnergyField(),
    "drifting": wg.DriftingField(K, wg.ForwardKL()),
    "conservative": wg.ConservativeField(wg.Laplace(1.0)),
    "compact": wg.DriftingField(wg.biweight(4.0), skip_self=True),
    "likelihood": wg.LikelihoodField([K, wg.Matern(1.0, nu=2.5)]),
    "mmd": wg.MMDField(wg.RationalQuadratic(torch.full((D,), 1.5))),
    "published": wg.PublishedField(),
    "blob": wg.BlobField(wg.Laplace(1.0)),
    "stein": wg.SteinField(K),
    "mixture": wg.LikelihoodField(K) + 0.5 * wg.EnergyField(0.5),
    "normalized": wg.EnergyField().normalized(),
    "standardized": wg.EnergyField().standardized(),
    "relative": wg.DriftingField(K).relative(),
}


def field_loss(field):
    """Depends on the points through the regression and through the field."""

    def loss(x, pos, weights):
        V = field(x, pos, pos_weights=weights)
        return wg.regress_onto(x, V) + V.square().mean()

    return loss


PUBLISHED = wg.DriftingLoss()
LOSSES = {name: field_loss(field) for name, field in FIELDS.items()} | {
    "drifting_loss": lambda x, pos, _: wg.drifting_loss(x, pos, field=wg.EnergyField()),
    "DriftingLoss": lambda x, pos, _: PUBLISHED(x, pos).loss,
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_is_the_eager_one(name):
    g = torch.Generator().manual_seed(0)
    x, pos = torch.randn(B, G, D, generator=g), torch.randn(B, P, D, generator=g)
    weights = torch.rand(B, P, generator=g)
    inputs = [t.requires_grad_() for t in (x, pos, weights)]
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="eager")

    def value_and_gradients(loss):
        value = loss(*inputs)
        return value, *torch.autograd.grad(value, inputs, materialize_grads=True)

    torch.testing.assert_close(
        value_and_gradients(compiled), value_and_gradients(LOSSES[name]), rtol=1e-5, atol=1e-6
    )


def test_every_field_is_compiled():
    exported = {
        name for name in wg.fields.__all__ if isinstance(getattr(wg.fields, name), type)
    } - {"Field", "InOwnUnit", *UNCOMPILED}
    assert {type(field).__name__ for field in FIELDS.values()} == exported


def test_what_was_compiled_for_whole_clouds_is_not_run_on_shards():
    class Shards:
        backend = "dense"

        def kernel_shift_f64(self, x, y, *_):
            return x[..., 0], torch.full_like(x, 7.0)

    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(lambda x, y: wg.mean_shift(x, y, kernel=K), backend="eager")
    torch.testing.assert_close(compiled(x, y), wg.mean_shift(x, y, kernel=K))
    with sharding.use(Shards()):
        assert (compiled(x, y) == 7.0).all()
