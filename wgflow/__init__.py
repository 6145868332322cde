"""Mean shift, KDE, drifting fields, f-divergence gates and Wasserstein flows: one algebra over one reduction."""

from wgflow import distributed
from wgflow.balanced import balanced_field, balanced_magnitudes, balanced_scale
from wgflow.bandwidths import (
    Annealed,
    leave_one_out,
    median_heuristic,
    per_dimension,
    scott,
    silverman,
)
from wgflow.density import KDE
from wgflow.divergences import (
    Alpha,
    ChiSquare,
    ForwardKL,
    Hellinger,
    JensenShannon,
    ReverseKL,
    SkewKL,
)
from wgflow.fields import (
    drifting_field,
    energy_field,
    likelihood_field,
    mean_shift,
    spread_ratio,
)
from wgflow.flows import flow, langevin
from wgflow.functionals import (
    MMD,
    BlobDivergence,
    BlobKL,
    EnergyDistance,
    Interaction,
    Likelihood,
    Potential,
    Sinkhorn,
)
from wgflow.kernels import (
    Compact,
    Gaussian,
    Kernel,
    Laplace,
    Matern,
    RationalQuadratic,
    biweight,
    epanechnikov,
    flat,
    student_t,
)
from wgflow.losses import DriftingLoss, DriftingReport, drifting_loss, guidance_weight, regress_onto
from wgflow.metrics import (
    energy_distance,
    kde_kl,
    mmd2,
    mode_coverage,
    mode_proportions,
    sliced_w2,
    w2,
)
from wgflow.particles import blob_field, mmd_field, stein_field
from wgflow.queues import SampleQueue
from wgflow.reductions import (
    capturable,
    explain_backend,
    keops_warmup,
    kernel_average,
    kernel_shift,
)
from wgflow.targets import (
    boltzmann_weights,
    effective_sample_size,
    importance_weights,
    level_set_weights,
    matched_temperature,
    top_k_weights,
    total_variation,
)
from wgflow.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "KDE",
    "MMD",
    "Alpha",
    "Annealed",
    "BlobDivergence",
    "BlobKL",
    "ChiSquare",
    "Compact",
    "DriftingLoss",
    "DriftingReport",
    "EnergyDistance",
    "ForwardKL",
    "Gaussian",
    "Hellinger",
    "Interaction",
    "JensenShannon",
    "Kernel",
    "Laplace",
    "Likelihood",
    "Matern",
    "Potential",
    "RationalQuadratic",
    "ReverseKL",
    "SampleQueue",
    "Sinkhorn",
    "SkewKL",
    "Trajectory",
    "balanced_field",
    "balanced_magnitudes",
    "balanced_scale",
    "biweight",
    "blob_field",
    "boltzmann_weights",
    "capturable",
    "distributed",
    "drifting_field",
    "drifting_loss",
    "effective_sample_size",
    "energy_distance",
    "energy_field",
    "epanechnikov",
    "explain_backend",
    "flat",
    "flow",
    "guidance_weight",
    "importance_weights",
    "kde_kl",
    "keops_warmup",
    "kernel_average",
    "kernel_shift",
    "langevin",
    "leave_one_out",
    "level_set_weights",
    "likelihood_field",
    "matched_temperature",
    "mean_shift",
    "median_heuristic",
    "mmd2",
    "mmd_field",
    "mode_coverage",
    "mode_proportions",
    "per_dimension",
    "regress_onto",
    "scott",
    "silverman",
    "sliced_w2",
    "spread_ratio",
    "stein_field",
    "student_t",
    "top_k_weights",
    "total_variation",
    "w2",
]
