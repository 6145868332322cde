"""Float32 blocks: distances as accurate as direct differences, and sums of every kernel that has an error estimate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import HEAVY, LIGHT
from wgflow.distances import sq_distances
from wgflow.kernels import Gaussian, Riesz, Scaled, Yukawa
from wgflow.reductions import blocked, float32

KERNELS = (*LIGHT, *HEAVY, Yukawa, lambda h: Riesz(1.0), lambda h: Scaled(Riesz(1.5), math.log(2)))
EPS = torch.finfo(torch.float32).eps


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(x, y):
    """The squared distances of one block."""
    centre = y.double().mean(-2, keepdim=True)
    work = float32.Work(x, x.shape[-2] * y.shape[-2])
    return float32.distances(
        float32.Rows(x, centre, work), float32.Columns(y, centre, None, 0)
    ).double()


@given(
    dim=st.sampled_from([1, 2, 25, 500]),
    spread=st.sampled_from([1.0, 1e-3, 1e-6, 1e-15]),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    outlier=st.sampled_from([0.0, 1e3, 1e12]),
    seed=st.integers(0, 99),
)
def test_distances_have_the_accuracy_of_float32_near_and_far(dim, spread, offset, outlier, seed):
    """Two points in three lie `spread` from a sample, one coincides with it; one sample is far from all others."""
    y = randn(40, dim, seed=seed) + offset
    x = y[:30] + spread * randn(30, dim, seed=seed + 1)
    x[::3], y[-1] = y[:30:3], y[-1] + outlier
    exact = (x.double().unsqueeze(-2) - y.double()).square().sum(-1)
    found = block(x, y)
    assert ((found == 0) == (exact == 0)).all()
    assert ((found - exact).abs() <= 8 * EPS * (1 + dim**0.5 / 8) * exact).all()


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("skip_self", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("h", [1.0, 0.01])
def test_sums_are_those_of_float64(monkeypatch, make, weighted, skip_self, lead, h):
    """Also for kernels so narrow, and weights so different, that sums need a reference; and weights of 0."""
    monkeypatch.setattr(blocked, "TILE_BYTES", 4 * 30)
    x = randn(*lead, 20, 2)
    y = x if skip_self else torch.cat([randn(*lead, 12, 2, seed=2), x[..., :8, :]], -2)
    log_w = torch.linspace(-70, 0, 20).expand(*lead, 20).clone() if weighted else None
    if log_w is not None:
        log_w[..., 3] = -math.inf
    found = float32.forward(x, y, log_w, make(h), skip_self)
    exact = blocked.forward(x, y, log_w, make(h), skip_self)
    assert ((found[0] - exact[0]).abs() <= 1e-4 * (1 + exact[0].abs())).all()
    rms = exact[2].clamp_min(0).sqrt().unsqueeze(-1)
    assert ((found[1] - exact[1]).abs() <= 1e-3 * rms + 1e-5).all()


def test_a_singular_kernel_beyond_the_range_of_float32_is_summed():
    """1 / r^3 at r = 1e-15 is no float32; the row of that pair takes a reference."""
    x = torch.tensor([[0.0], [2.0]])
    y = torch.tensor([[1e-15], [1.0]])
    log_mass = float32.forward(x, y, None, Riesz(3.0), False)[0]
    assert abs(float(log_mass[0]) - 45 * math.log(10)) < 1e-4
    assert abs(float(log_mass[1]) - math.log(1 + 1 / 8)) < 1e-6


def test_rows_without_a_sample_have_no_mass_and_no_shift():
    x = randn(1, 2).expand(3, 2).contiguous()
    for kernel in (Riesz(1.0), Yukawa(0.01)):
        log_mass, shift, _ = float32.forward(x, x, None, kernel, False)
        assert (log_mass == -math.inf).all()
        assert (shift == 0).all()


def test_other_devices_take_direct_differences(monkeypatch):
    """Their distances are those of `torch.cdist` in float32: few GPUs have fast float64 units."""
    x, y = randn(5, 3), randn(7, 3, seed=2)
    monkeypatch.setattr(float32, "PRODUCTS", ())
    assert torch.equal(block(x, y).float(), sq_distances(x, y))
    found = float32.forward(x, y, None, Gaussian(1.0), False)
    exact = blocked.forward(x, y, None, Gaussian(1.0), False)
    assert (found[0] - exact[0]).abs().max() < 1e-5
