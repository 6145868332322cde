"""Hypothesis strategies for point clouds of any dimension, size and batch shape, degenerate ones included."""

import dataclasses
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wgflow import (
    ForwardKL,
    Gaussian,
    Laplace,
    Matern,
    RationalQuadratic,
    biweight,
    drifting_field,
    epanechnikov,
    flat,
    likelihood_field,
    mean_shift,
    student_t,
)

GAUSSIAN_LIKE = (Gaussian, lambda h: Matern(h, 1.5), lambda h: Matern(h, 2.5))
HEAVY = (lambda h: RationalQuadratic(h, 4.5), lambda h: student_t(h, nu=3.0, dim=2))
LIGHT = (*GAUSSIAN_LIKE, Laplace)
SMOOTH = (*GAUSSIAN_LIKE, *HEAVY)
KERNELS = (*LIGHT, *HEAVY)  # positive everywhere
COMPACT = (
    lambda h: flat(40 * h),
    lambda h: epanechnikov(40 * h),
    lambda h: biweight(40 * h),
)  # wide enough for a cloud


@dataclass
class Clouds:
    """Points x, positives and negatives with weights, all in float64; `h` fits their spread."""

    x: Tensor
    pos: Tensor
    neg: Tensor
    wp: Tensor
    wn: Tensor
    h: float
    generator: torch.Generator

    @property
    def scale(self) -> float:
        """A length to compare rounding errors with."""
        return max(1.0, *(t.abs().max().item() for t in (self.x, self.pos, self.neg)))

    def rand(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


@st.composite
def clouds(draw, *, dim: int | None = None, batch: bool = True, degenerate: bool = True) -> Clouds:
    """Two or three clouds around the origin; with `degenerate`, also duplicates, single points and zero weights."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    d = dim or draw(st.integers(1, 5))
    lead = draw(st.sampled_from([(), (), (2,), (3, 2)])) if batch else ()
    smallest = 1 if degenerate else 2
    n, p, m = (draw(st.integers(smallest, 6)) for _ in range(3))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, pos, neg = randn(*lead, n, d), 1 + randn(*lead, p, d), randn(*lead, m, d)
    wp, wn = (torch.rand(*lead, k, generator=generator, dtype=torch.float64) + 0.05 for k in (p, m))
    if degenerate and draw(st.booleans()):
        pos[..., -1, :] = pos[..., 0, :]  # duplicates among the samples
        x[..., 0, :] = pos[..., 0, :]  # and a point exactly on one
        if p > 1:
            wp[..., 1] = 0.0
    return Clouds(x, pos, neg, wp, wn, draw(st.floats(0.3, 3.0)), generator)


def kernels(family=KERNELS) -> st.SearchStrategy:
    """A kernel with a bandwidth around the spread of `clouds`."""
    return st.builds(lambda make, h: make(h), st.sampled_from(family), st.floats(0.3, 3.0))


def rotation(dim: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, [dim, dim]."""
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q


def assert_close(a: Tensor, b: Tensor, *, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=False)


def scaled(kernel, lengths: Tensor):
    """The kernel with its length scale times a tensor."""
    return dataclasses.replace(kernel, length_scale=kernel.length_scale * lengths)


SHIFTS = {  # fields that are lengths, for any kernel
    "mean_shift": lambda x, p, q, k: mean_shift(x, p, kernel=k),
    "drifting": lambda x, p, q, k: drifting_field(x, p, q, kernel=k),
    "weighted": lambda x, p, q, k: drifting_field(x, p, q, kernel=k, divergence=ForwardKL()),
    "likelihood": lambda x, p, q, k: likelihood_field(x, p, kernel=k),
}


class NoReads(TorchDispatchMode):
    """Refuse to read values, and shapes that depend on them: on a GPU both wait for all its work."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket._qualified_op_name.split("::")[1] not in self.READS
        return func(*args, **(kwargs or {}))
