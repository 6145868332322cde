r"""Kernels as frozen values: k(x, y) = k(|x - y|²), each knowing its mass, its slope and its shadow.

Two relations carry the whole library. The *slope* of k is s = -2 dk/d|x-y|², so that ∇_x k(x, y) = s (y - x):
scores are averages under the slope. The *shadow* of k is the kernel H whose slope is k / c (Cheng 1995), so
that the mean shift under k is c (f_H / f_k) ∇log f_H. Only the Gaussian is its own shadow, hence "drift = h²
times the score gap" is Gaussian alone.
"""

from wgflow.kernels.compact import Compact, biweight, epanechnikov, flat
from wgflow.kernels.gaussian import Gaussian
from wgflow.kernels.kernel import Kernel, Scaled, as_kernels, check_bandwidth
from wgflow.kernels.matern import Laplace, Matern, Yukawa
from wgflow.kernels.powers import RationalQuadratic, Riesz, student_t

__all__ = [
    "Compact",
    "Gaussian",
    "Kernel",
    "Laplace",
    "Matern",
    "RationalQuadratic",
    "Riesz",
    "Scaled",
    "Yukawa",
    "as_kernels",
    "biweight",
    "check_bandwidth",
    "epanechnikov",
    "flat",
    "student_t",
]
