"""KeOps as a backend. Each formula, dimension and dtype compiles for 8 to 12 seconds, so these are few."""

import importlib.util
import math
import shutil
import sys

import pytest
import torch

from tests.strategies import assert_close
from wgflow import Gaussian, Matern, epanechnikov, keops_warmup, kernel_shift
from wgflow.reductions import keops

compiled = pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("pykeops") is None,
    reason="pykeops compiles: it needs to be installed, and g++",
)


def randn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.fixture
def forgetful():
    """Nothing imported or compiled before is remembered during the test, nor after it."""
    keops.genred.cache_clear()
    keops.reduction.cache_clear()
    yield
    keops.genred.cache_clear()
    keops.reduction.cache_clear()


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "skip_self"),
    [(Gaussian(0.7), False), (Gaussian(0.7).gradient_kernel, True), (Matern(0.7), False)],
)
def test_keops_is_the_dense_sum(kernel, skip_self):
    x, y, log_w = randn(2, 9, 2), randn(1, 9, 2, seed=2), randn(2, 9, seed=3)
    log_w[..., 0] = -math.inf  # the first one, which KeOps itself turns into NaN
    results = []
    for backend in ("dense", "keops"):
        args = [t.clone().requires_grad_() for t in (x.mT.contiguous().mT, y + 1e3, log_w)]
        out = kernel_shift(
            args[0] + 1e3,
            args[1],
            kernel=kernel,
            log_weights=args[2],
            skip_self=skip_self,
            backend=backend,
        )
        results.append([*out, *torch.autograd.grad(out[0].sum() + out[1].square().sum(), args)])
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-8, atol=1e-8)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keops_sums_float32_and_halves_in_float32(dtype, capfd):
    keops_warmup(Gaussian(1.0), 2)
    x, y = randn(20, 2, dtype=dtype), randn(900, 2, seed=2, dtype=dtype)
    for h in (0.5, 0.7):  # the bandwidth is a parameter: nothing new is compiled
        found = kernel_shift(x, y, kernel=Gaussian(h), backend="keops")
        exact = kernel_shift(x.double(), y.double(), kernel=Gaussian(h))
        for a, b in zip(found, exact, strict=True):
            assert_close(a.double(), b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_a_missing_pykeops_is_named_with_a_way_out(monkeypatch, forgetful):
    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    with pytest.raises(RuntimeError, match=r"pip install .*wgflow\[keops\]"):
        kernel_shift(randn(3, 2), randn(3, 2), kernel=Gaussian(1.0), backend="keops")


def test_a_missing_compiler_is_named_with_a_way_out(monkeypatch):
    def fails(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'pykeops_cpp_8d7c'")

    monkeypatch.setattr(keops, "reduction", lambda *a: fails)
    with pytest.raises(RuntimeError, match=r"g\+\+"):
        kernel_shift(randn(3, 2), randn(3, 2), kernel=Gaussian(1.0), backend="keops")


def test_keops_refuses_kernels_that_vanish():
    with pytest.raises(ValueError, match="no KeOps formula"):
        kernel_shift(randn(3, 2), randn(3, 2), kernel=epanechnikov(1.0), backend="keops")


def test_auto_needs_no_pykeops(monkeypatch, forgetful):
    monkeypatch.setitem(sys.modules, "pykeops", None)
    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    x = randn(700, 2)
    for kernel in (Gaussian(1.0), Matern(1.0)):
        assert kernel_shift(x, x, kernel=kernel)[0].isfinite().all()


@compiled
@pytest.mark.slow
def test_keops_has_no_mass_where_a_point_is_the_only_weighted_sample_itself():
    x = torch.tensor([[0.0], [0.7], [1.5]], dtype=torch.float64)
    log_w = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
    results = [
        kernel_shift(x, x, kernel=Gaussian(1.0), log_weights=log_w, skip_self=True, backend=backend)
        for backend in ("keops", "dense")
    ]
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
