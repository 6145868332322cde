r"""The kernel sums: the one place where the library sums over samples.

`kernel_shift` returns (log Σ_j w_j k_ij, Σ_j W_ij (y_j - x_i)), with W the weights normalised over j; densities, scores
and fields are algebra on it. All backends share one formula for a block, one for its gradient and one rule to merge.
"""

from wgflow.arguments import capturable
from wgflow.reductions.api import (
    kernel_average,
    kernel_shift,
    kernel_shift_f64,
    responsibility_shift_f64,
)
from wgflow.reductions.dispatch import explain_backend
from wgflow.reductions.keops import keops_warmup
from wgflow.reductions.sharding import log_total, require_unsharded
from wgflow.reductions.validation import check_clouds, check_no_nan, check_weights

__all__ = [
    "capturable",
    "check_clouds",
    "check_no_nan",
    "check_weights",
    "explain_backend",
    "keops_warmup",
    "kernel_average",
    "kernel_shift",
    "kernel_shift_f64",
    "log_total",
    "require_unsharded",
    "responsibility_shift_f64",
]
