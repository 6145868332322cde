"""Mean shift, KDE, drifting fields, f-divergence gates and Wasserstein gradient flows: one algebra over one
reduction.
"""

from wgflow.divergences import ChiSquare, ForwardKL, Hellinger, JensenShannon, ReverseKL, SkewKL
from wgflow.fields import (
    balanced_field,
    balanced_scale,
    drifting_field,
    energy_field,
    likelihood_field,
    mean_shift,
    spread_ratio,
)
from wgflow.flows import Trajectory, flow
from wgflow.kde import KDE
from wgflow.kernels import Gaussian, Kernel, Laplace, Matern
from wgflow.losses import drifting_loss, regress_onto
from wgflow.metrics import energy_distance, mmd2, mode_proportions, sliced_w2
from wgflow.sums import kernel_average, kernel_shift

__version__ = "0.1.0"

__all__ = [
    "KDE",
    "ChiSquare",
    "ForwardKL",
    "Gaussian",
    "Hellinger",
    "JensenShannon",
    "Kernel",
    "Laplace",
    "Matern",
    "ReverseKL",
    "SkewKL",
    "Trajectory",
    "balanced_field",
    "balanced_scale",
    "drifting_field",
    "drifting_loss",
    "energy_distance",
    "energy_field",
    "flow",
    "kernel_average",
    "kernel_shift",
    "likelihood_field",
    "mean_shift",
    "mmd2",
    "mode_proportions",
    "regress_onto",
    "sliced_w2",
    "spread_ratio",
]
