r"""Kernels as frozen values: k(x, y) = k(|x - y|²), each with its mass, its gradient kernel and its shadow.

Two relations carry the library. The *gradient kernel* of k is s = -2 dk/d|x-y|², so that ∇_x k(x, y) = s (y - x):
scores are averages under s. The *shadow* of k is the kernel H whose gradient kernel is k / c (Cheng 1995), so that the
mean shift under k is c (f_H / f_k) ∇log f_H. Only the Gaussian is its own shadow, so "drift = h² times the difference
of scores" holds for the Gaussian alone.
"""

from wgflow.kernels.compact import Compact, biweight, epanechnikov, flat
from wgflow.kernels.gaussian import Gaussian
from wgflow.kernels.kernel import (
    Kernel,
    LengthScaleKernel,
    Scaled,
    as_kernels,
    unscaled,
)
from wgflow.kernels.length_scales import describe, divide, multiply, positive, rescale
from wgflow.kernels.matern import Laplace, Matern, Yukawa
from wgflow.kernels.powers import RationalQuadratic, Riesz, student_t

__all__ = [
    "Compact",
    "Gaussian",
    "Kernel",
    "Laplace",
    "LengthScaleKernel",
    "Matern",
    "RationalQuadratic",
    "Riesz",
    "Scaled",
    "Yukawa",
    "as_kernels",
    "biweight",
    "describe",
    "divide",
    "epanechnikov",
    "flat",
    "multiply",
    "positive",
    "rescale",
    "student_t",
    "unscaled",
]
