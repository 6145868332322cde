r"""The waist: the only place where samples are summed.

`kernel_shift` returns (log Σ_j w_j k_ij, Σ_j W_ij (y_j - x_i)) with W the weights normalised over j. Everything above
it is algebra. One forward tile, one backward tile and one merge rule serve every backend.
"""

from wgflow.sums.checks import capturable, check_clouds, log_of_weights, readable, refuse_nan
from wgflow.sums.choice import explain_backend
from wgflow.sums.door import double_shift, kernel_average, kernel_shift
from wgflow.sums.keops import keops_warmup
from wgflow.sums.sharding import log_total, only_whole

__all__ = [
    "capturable",
    "check_clouds",
    "double_shift",
    "explain_backend",
    "keops_warmup",
    "kernel_average",
    "kernel_shift",
    "log_of_weights",
    "log_total",
    "only_whole",
    "readable",
    "refuse_nan",
]
