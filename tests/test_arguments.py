"""Arguments of the wrong kind: the error names the argument, what came, what was wanted, and a way out."""

import contextlib
import inspect
import pickle

import numpy as np
import pytest
import torch

import wgflow as wg
from tests.public_calls import CALLS
from tests.strategies import NoReads
from wgflow.arguments import checked

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
K = wg.Gaussian(0.5)
# Their calls pass no cloud on.
NO_CLOUD = {
    "Annealed",
    "draw_guidance",
    "guidance_weight",
    "total_variation",
    "effective_sample_size",
}


@pytest.mark.parametrize("name", [name for name in CALLS if name not in NO_CLOUD])
def test_an_array_in_place_of_a_tensor_is_refused_with_its_conversion(name):
    with pytest.raises(ValueError, match=r"is a numpy array \[\d.*wanted.*torch\.as_tensor\("):
        CALLS[name](X.numpy(), X[:4].numpy())


@pytest.mark.parametrize(
    ("says", "call"),
    [
        (r"kernel is 0\.5 .*Gaussian\(0\.5\)", lambda: wg.KDE(X, 0.5)),
        (r"kernel is 0\.5 .*Gaussian\(0\.5\)", lambda: wg.drifting_field(X, X, X, kernel=0.5)),
        (r"kernel is \[0\.1, 1\.0\]", lambda: wg.mmd_field(X, X, kernel=[0.1, 1.0])),
        (r"kernel is the class Gaussian.*Gaussian\(", lambda: wg.mean_shift(X, X, kernel=wg.Gaussian)),
        (r"divergence is 'kl'.*ReverseKL\(\)", lambda: wg.drifting_field(X, X, X, kernel=K, divergence="kl")),
        (r"divergence is the class", lambda: wg.drifting_field(X, X, X, kernel=K, divergence=wg.ForwardKL)),
        (r"generator is 3.*manual_seed\(3\)", lambda: wg.sliced_w2(X, X, generator=3)),
        (r"x is a numpy array", lambda: wg.KDE(X, K).score(X.numpy())),
        (r"x is a numpy array", lambda: wg.MMD(X, K).velocity(X.numpy())),
        (r"target is a Tensor.*log_density", lambda: wg.BlobKL(X, K)),
        (r"field is 'energy'.*EnergyField\(\)", lambda: wg.drifting_loss(X, X, field="energy")),
        (r"field is the class EnergyField", lambda: wg.DriftingLoss(field=wg.EnergyField)),
        (r"velocity is 1 .*function.* or a functional", lambda: wg.flow(1, X, steps=1)),
        (r"x is torch\.int64.*x\.float\(\)", lambda: wg.energy_distance(X.long(), X)),
        (r"x is \[6\].*t\[:, None\]", lambda: wg.energy_distance(X[:, 0], X[:, 1])),
        (r"pos is None", lambda: wg.DriftingLoss()(X, None)),
    ],
)  # fmt: skip
def test_the_error_names_a_way_out(says, call):
    with pytest.raises(ValueError, match=says):
        call()


COUNTS = {
    "SampleQueue": lambda n: wg.SampleQueue(2, size=n),
    "SinkhornField": lambda n: wg.SinkhornField(0.1, iterations=n),
    "SlicedEnergyField": lambda n: wg.SlicedEnergyField(n),
    "draw_guidance": wg.draw_guidance,
    "flow": lambda n: wg.flow(lambda x: -x, X, steps=n),
    "leave_one_out": lambda n: wg.leave_one_out(X, rounds=n),
    "median_heuristic": lambda n: wg.median_heuristic(X, at_most=n),
    "sample": lambda n: wg.KDE(X, K).sample(n),
    "sliced_w2": lambda n: wg.sliced_w2(X, X, projections=n),
    "support_overlap": lambda n: wg.support_overlap(X, X, k=n),
    "top_k_weights": lambda n: wg.top_k_weights(X, k=n),
    "matched_temperature": lambda n: wg.matched_temperature(X, k=n),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("number", [2.5, 2.0, True, "2", torch.tensor(2.0)], ids=repr)
def test_a_count_is_an_integer(name, number):
    with pytest.raises(ValueError, match="wanted an integer"):
        COUNTS[name](number)
    COUNTS[name](np.int64(2))


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_not_negative(name):
    with pytest.raises(ValueError, match="-1"):
        COUNTS[name](-1)


def test_lists_of_kernels_are_kernels():
    for kernels in ([K, wg.Laplace(1.0)], (K,)):
        assert wg.drifting_field(X, X, X, kernel=kernels).shape == X.shape


def test_a_user_defined_divergence_is_accepted():
    class Twice:
        def f(self, log_ratio):
            return log_ratio

        def weight(self, log_ratio):
            return torch.full_like(log_ratio, 2.0)

    field = wg.drifting_field(X, X + 1, X, kernel=K, divergence=Twice())
    assert torch.equal(field, 2 * wg.drifting_field(X, X + 1, X, kernel=K))


def test_a_checked_function_keeps_its_signature_and_can_be_pickled():
    names = ["x", "y", "kernel", "weights", "skip_self"]
    assert list(inspect.signature(wg.mean_shift).parameters) == names
    assert pickle.loads(pickle.dumps(wg.mean_shift)) is wg.mean_shift
    assert pickle.loads(pickle.dumps(K)) == K


def test_other_annotations_are_left_alone():
    @checked
    def loose(x, y: float = 0):
        return x

    assert loose("anything", "text") == "anything"
    with pytest.raises(TypeError, match="argument"):
        loose(1, 2, 3)


CAPTURED = [
    wg.DriftingField(K),
    wg.DriftingField([K, wg.Laplace(1.0)], wg.ChiSquare()),
    wg.LikelihoodField(K).relative().normalized(),
    wg.EnergyField(),
    wg.MMDField(K),
    wg.PublishedField(),
]


@pytest.mark.parametrize("field", CAPTURED, ids=repr)
@pytest.mark.parametrize("points", [6, 600], ids=["few", "many"])
def test_a_capturable_update_reads_no_value_and_is_the_same(field, points):
    x, pos = (torch.randn(points, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    w = torch.rand(points, generator=torch.Generator().manual_seed(3))
    results = []
    for inside in (False, True):
        at = x.clone().requires_grad_()
        with contextlib.ExitStack() as stack:
            if inside:
                stack.enter_context(wg.capturable())
                stack.enter_context(NoReads())
            V = field(at, pos, pos_weights=w)
            wg.regress_onto(at, V).backward()
        results.append((V.detach(), at.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError), NoReads():  # the check of the weights reads them
        field(x, pos, pos_weights=w)
