"""Every public call under half precision, autocast, inference mode and another default device of torch."""

import pytest
import torch

import wgflow as wg
from tests.public_calls import CALLS
from wgflow.flows import State
from wgflow.reductions.dispatch import Choice
from wgflow.testing import toy

TARGETS = {
    "eight": toy.eight_gaussians,
    "unbalanced": toy.unbalanced_mixture,
    "moons": toy.TwoMoons,
    "roll": toy.SwissRoll,
    "board": toy.Checkerboard,
    "rings": toy.Rings,
    "funnel": toy.Funnel,
    "pinwheel": toy.Pinwheel,
}


def clouds(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(6, 2, generator=g).to(dtype) for _ in range(2))


def tensors(result):
    """The tensors and numbers of a result, in order; never none."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, float):
        return [torch.tensor(result, device="cpu")]
    if isinstance(result, list | tuple):
        return [t for each in result for t in tensors(each)]
    if isinstance(result, wg.Trajectory):
        return [result.points]
    if isinstance(result, wg.Gaussian):
        return tensors(result.length_scale)
    assert isinstance(result, Choice), f"{result!r} is not compared"
    return [torch.tensor(float(result.error or 0), device="cpu")]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_that_of_the_input_and_of_nothing_else(name, dtype):
    """The result for half precision is the result for the same numbers in float32, rounded."""
    half = tensors(CALLS[name](*clouds(dtype)))
    single = tensors(CALLS[name](*(t.float() for t in clouds(dtype))))
    if name in DRAWS:
        assert all(t.isfinite().all() for t in half)
        return
    steps = 50 * torch.finfo(dtype).eps  # of a flow, each rounded
    for a, b in zip(half, single, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=steps, atol=steps)


# Other numbers of the generator are drawn in another dtype.
DRAWS = {
    *("Gaussian", "Laplace", "Matern", "RationalQuadratic", "Compact", "flat", "epanechnikov"),
    *("biweight", "student_t", "Langevin", "MALA"),
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name):
    """User functions may be cast; these are elementwise."""
    plain = tensors(CALLS[name](*clouds()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tensors(CALLS[name](*clouds()))
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_changes_nothing(name):
    plain = tensors(CALLS[name](*clouds()))
    with torch.inference_mode():
        inference = tensors(CALLS[name](*clouds()))
    for a, b in zip(plain, inference, strict=True):
        assert torch.equal(a.detach(), b)


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"SampleQueue"}))  # its buffers are made there
def test_the_default_device_is_not_that_of_a_call(name):
    x, y = clouds()
    with torch.device("meta"):
        result = tensors(CALLS[name](x, y))
    assert all(t.device.type == "cpu" for t in result)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_lies_where_its_generator_does(name):
    plain = TARGETS[name]().sample(5, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        drawn = TARGETS[name]().sample(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, plain)


KERNELS = [
    wg.Gaussian(0.5),
    wg.Laplace(0.5),
    wg.Matern(0.5),
    wg.student_t(0.5, nu=3.0, dim=2),
    wg.flat(0.5),
]


def step(solver, x):
    """The points after a step of a solver along -sin x."""
    return solver.step(State(x, 0.0, solver.dt), -x.sin(), lambda x, t: -x.sin()).x


SAMPLERS = {  # (points, generator) -> draws on the device of the points
    **{repr(k): lambda x, g, k=k: wg.KDE(x, k).sample(4, generator=g) for k in KERNELS},
    "matrix": lambda x, g: wg.KDE(x, wg.Gaussian(torch.eye(2).to(x))).sample(4, generator=g),
    "Langevin": lambda x, g: step(wg.Langevin(0.1, generator=g), x),
    "MALA": lambda x, g: step(wg.MALA(0.1, lambda t: t.cos().sum(-1), generator=g), x),
    "sliced_w2": lambda x, g: wg.sliced_w2(x, x + 1, generator=g),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sampler_draws_on_the_device_of_its_generator_and_moves_the_draws(name, device):
    """On "meta", a device that every machine has, a draw with a generator of the CPU would be refused."""
    x = next(clouds()).to(device)
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    first, second = (SAMPLERS[name](x, g) for g in generators[:2])
    assert first.device == x.device
    assert not torch.equal(generators[0].get_state(), generators[2].get_state())
    assert x.is_meta or torch.equal(first, second)


def test_a_device_without_float64_is_refused():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        x = FakeTensor(mode, torch.empty(4, 2, device="meta"), torch.device("mps"))
        with pytest.raises(ValueError, match="MPS has no float64"):
            wg.energy_field(x, x)


SCALES = [("weights of 1e20", 1e20), ("weights of 1e-30", 1e-30)]


@pytest.mark.parametrize("scale", [s for _, s in SCALES], ids=[name for name, _ in SCALES])
def test_an_effective_sample_size_depends_on_ratios_only(scale):
    w = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    size = wg.effective_sample_size(w * scale)
    torch.testing.assert_close(size, wg.effective_sample_size(w))
    gradients = [torch.autograd.grad(s.sum(), w)[0] for s in (size, wg.effective_sample_size(w))]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3000.0])
@pytest.mark.parametrize("name", ["normalized", "relative", "standardized"])
def test_scaled_fields_of_half_precision_are_those_of_float32(name, scale):
    """Squares of half precision overflow from 256 on, and vanish below 1e-4."""
    x, y = ((scale * t).half() for t in clouds())
    field = getattr(wg.DriftingField(wg.Gaussian(scale if name == "normalized" else 0.3)), name)()
    half, single = field(x, y), field(x.float(), y.float())
    torch.testing.assert_close(
        half.float(), single, rtol=5e-3, atol=5e-3 * float(single.abs().max())
    )


def test_effective_sample_sizes_of_half_precision_count_every_sample():
    """Half precision counts to 2,048."""
    y = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0)).half()
    kde = wg.KDE(y, wg.Gaussian(3.0))
    size = kde.effective_sample_size(torch.zeros(1, 2).half())
    exact = wg.KDE(y.double(), wg.Gaussian(3.0)).effective_sample_size(torch.zeros(1, 2).double())
    torch.testing.assert_close(size.double(), exact, rtol=1e-3, atol=0)
    assert wg.effective_sample_size(torch.ones(10_000).half()) == 10_000


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_a_spread_ratio_depends_on_ratios_only(scale):
    x, y = clouds()
    torch.testing.assert_close(wg.spread_ratio(scale * x, scale * y), wg.spread_ratio(x, y))


def test_losses_features_and_targets_of_half_precision_are_those_of_float32():
    """Squares, counts and grids of theirs leave half precision, or are too coarse in it."""
    x, y = ((3000 * t).half() for t in clouds())
    torch.testing.assert_close(
        wg.regress_onto(x, y), wg.regress_onto(x.float(), y.float()), rtol=1e-3, atol=0
    )
    a = 1000 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = zip(wg.patch_features(a.half()), wg.patch_features(a.half().float()), strict=True)
    for half, single in maps:
        torch.testing.assert_close(half, single)
    weights = wg.level_set_weights(torch.ones(70_000).half(), threshold=0.0)
    assert float(weights.double().sum()) == pytest.approx(1, rel=1e-2)
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        low = values.to(dtype)
        alpha, tv = wg.matched_temperature(low, k=2)
        exact = wg.matched_temperature(low.double(), k=2)
        assert (alpha.dtype, tv.dtype) == (dtype, dtype)
        torch.testing.assert_close(alpha.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=0)
    heavy = torch.full((6,), 60_000.0).half()
    field = wg.EnergyField().relative()
    torch.testing.assert_close(
        field(*clouds(torch.float16), pos_weights=heavy), field(*clouds(torch.float16))
    )
