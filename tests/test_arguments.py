"""Arguments of the wrong kind, at every public name: one sentence says what came, what was wanted and a way out."""

import inspect
import pickle

import numpy as np
import pytest
import torch

import wgflow as wg
from tests.public_calls import CALLS
from wgflow.arguments import checked

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
K = wg.Gaussian(0.5)
CLOUDLESS = {
    "Annealed",
    "guidance_weight",
    "total_variation",
    "effective_sample_size",
}  # their calls hand no cloud on
RESULTS = {
    "Trajectory",
    "DriftingReport",
    "Kernel",
    "Field",
    "Functional",
    "keops_warmup",
}  # nobody but the library calls them with clouds
PUBLIC = [name for name in wg.__all__ if name not in RESULTS and callable(getattr(wg, name))]


@pytest.mark.parametrize("name", [name for name in CALLS if name not in CLOUDLESS])
def test_an_array_in_place_of_a_tensor_is_refused_with_its_conversion(name):
    with pytest.raises(ValueError, match=r"is a numpy array \[\d.*wanted.*torch\.as_tensor\("):
        CALLS[name](X.numpy(), X[:4].numpy())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_every_public_name_is_checked(name):
    """Refused by its name, whatever the others are: no argument slips to where an error would be Python's own."""
    public = getattr(wg, name)
    for argument in inspect.signature(public).parameters:
        with pytest.raises(ValueError, match=rf"^{argument} is <object object.*wanted"):
            public(**{argument: object()})


@pytest.mark.parametrize(
    ("says", "call"),
    [
        (r"kernel is 0\.5 .*Gaussian\(0\.5\)", lambda: wg.KDE(X, 0.5)),
        (r"kernel is 0\.5 .*Gaussian\(0\.5\)", lambda: wg.drifting_field(X, X, X, kernel=0.5)),
        (r"kernel is \[0\.1, 1\.0\]", lambda: wg.mmd_field(X, X, kernel=[0.1, 1.0])),
        (r"kernel is the class Gaussian itself.*Call it: Gaussian\(", lambda: wg.mean_shift(X, X, kernel=wg.Gaussian)),
        (r"divergence is 'kl'.*ReverseKL\(\)", lambda: wg.drifting_field(X, X, X, kernel=K, divergence="kl")),
        (r"divergence is the class", lambda: wg.drifting_field(X, X, X, kernel=K, divergence=wg.ForwardKL)),
        (r"steps is 1\.5.*whole number.*int\(1\.5\)", lambda: wg.flow(lambda x: -x, X, steps=1.5)),
        (r"dt is a tensor.*dt\.item\(\)", lambda: wg.Euler(torch.tensor(0.1))),
        (r"velocity is a tensor.*wanted a function", lambda: wg.flow(X, X, steps=1)),
        (r"generator is 3.*manual_seed\(3\)", lambda: wg.sliced_w2(X, X, generator=3)),
        (r"x is a numpy array", lambda: wg.KDE(X, K).score(X.numpy())),
        (r"x is a numpy array", lambda: wg.MMD(X, K).velocity(X.numpy())),
        (r"target is a tensor.*log_density", lambda: wg.BlobKL(X, K)),
        (r"pos is None", lambda: wg.DriftingLoss()(X, None)),
        (r"skip_self is 'no'", lambda: wg.mean_shift(X, X, kernel=K, skip_self="no")),
        (r"k is True", lambda: wg.top_k_weights(X, k=True)),
    ],
)  # fmt: skip
def test_the_refusal_names_the_way_out(says, call):
    with pytest.raises(ValueError, match=says):
        call()


def test_numbers_of_numpy_are_numbers_and_lists_of_kernels_are_kernels():
    assert (
        wg.flow(lambda x: -x, X, solver=wg.Euler(np.float32(0.1)), steps=np.int64(2)).end.shape
        == X.shape
    )
    for kernels in ([K, wg.Laplace(1.0)], (K,)):
        assert wg.drifting_field(X, X, X, kernel=kernels).shape == X.shape
    assert wg.Stretched(K, np.array([1.0, 2.0])) == wg.Stretched(K, [1.0, 2.0])


def test_a_divergence_of_ones_own_is_one():
    class Mine:
        def f(self, log_ratio):
            return log_ratio

        def gate(self, log_ratio):
            return torch.full_like(log_ratio, 2.0)

    field = wg.drifting_field(X, X + 1, X, kernel=K, divergence=Mine())
    assert torch.equal(field, 2 * wg.drifting_field(X, X + 1, X, kernel=K))


def test_a_checked_name_is_still_itself():
    """Its signature and documentation are what they were, and values and functions still travel between processes."""
    assert list(inspect.signature(wg.mean_shift).parameters) == [
        "x",
        "y",
        "kernel",
        "weights",
        "skip_self",
    ]
    assert pickle.loads(pickle.dumps(wg.mean_shift)) is wg.mean_shift
    assert pickle.loads(pickle.dumps(K)) == K


def test_what_is_not_annotated_is_left_alone():
    @checked
    def loose(x, y: int = 0):
        return x

    assert loose("anything") == "anything"
    with pytest.raises(TypeError, match="argument"):
        loose(1, 2, 3)
