"""Velocity fields that move generated points towards data, one family per file.

Every field exists as a value, `EnergyField()(x, pos)`, and as a function, `energy_field(x, pos)`. The values share
one protocol (`Field`), can be compared and printed, and form mixtures: `LikelihoodField(k) + 0.5 * EnergyField()`.

* `DriftingField` (DFP Eq. 3) needs several positives per group; with one it regresses onto the mean.
* `LikelihoodField`, `EnergyField` and `MMDField` are linear in the positives, so one positive per group suffices.
* `SlicedEnergyField` estimates `EnergyField` of large clouds by sorting.
* `NystromField` is `DriftingField` with the attraction of a large fixed cloud through landmarks, with an error bound.
* `PublishedField` is the two-sided normalisation of the published drifting code.
* `SphereField` projects any of them to the tangents of the unit sphere.
* `ConservativeField` is the score difference of two KDEs, for any kernel.
* `SinkhornField` has entropic transport plans in place of kernel weights; it needs several positives too.
* `BlobField` and `SteinField` move particles towards a density that has a score.
"""

from wgflow.fields.base import (
    Field,
    InOwnUnit,
    Mixture,
    Normalized,
    Relative,
    Standardized,
    mean_kernel_gradient,
)
from wgflow.fields.conservative import ConservativeField, conservative_field
from wgflow.fields.drift import DriftingField, drifting_field, mean_shift
from wgflow.fields.energy import EnergyField, check_beta, energy_field
from wgflow.fields.likelihood import LikelihoodField, likelihood_field
from wgflow.fields.nystrom import NystromAverage, NystromField
from wgflow.fields.particle import (
    BlobField,
    MMDField,
    SteinField,
    blob_field,
    mmd_field,
    stein_field,
)
from wgflow.fields.published import (
    PublishedField,
    published_field,
    published_magnitudes,
    published_scale,
)
from wgflow.fields.sinkhorn import SinkhornField, sinkhorn_field
from wgflow.fields.sliced import SlicedEnergyField, sliced_energy_field
from wgflow.fields.sphere import SphereField, exponential_map

__all__ = [
    "BlobField",
    "ConservativeField",
    "DriftingField",
    "EnergyField",
    "Field",
    "InOwnUnit",
    "LikelihoodField",
    "MMDField",
    "Mixture",
    "Normalized",
    "NystromAverage",
    "NystromField",
    "PublishedField",
    "Relative",
    "SinkhornField",
    "SlicedEnergyField",
    "SphereField",
    "Standardized",
    "SteinField",
    "blob_field",
    "check_beta",
    "conservative_field",
    "drifting_field",
    "energy_field",
    "exponential_map",
    "likelihood_field",
    "mean_kernel_gradient",
    "mean_shift",
    "mmd_field",
    "published_field",
    "published_magnitudes",
    "published_scale",
    "sinkhorn_field",
    "sliced_energy_field",
    "stein_field",
]
