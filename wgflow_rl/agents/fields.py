"""Fields on the command line: `parse("likelihood:0.2+energy")` reads a mean of two `wgflow` fields.

Only `drifting`, the paper's field, has a bandwidth in action units. The other bandwidths are fractions of the mean
distance E|x - y| between generated and positive chunks, so that one number serves a 2-D and a 50-D chunk. Fields other
than the two drifting ones are dimensionless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import wgflow as wg
from wgflow.fields import Mixture, Normalized


def drifting(h: float = 0.05) -> wg.Field:
    """The paper's field, a displacement in action units; h is a length (DFP Eq. 3, Tables 5 and 8)."""
    return wg.DriftingField(wg.Gaussian(h))


def drifting_relative(h: float = 0.2) -> wg.Field:
    """The same field with h as a fraction of E|x - y|. Not in the paper."""
    return drifting(h).relative()


def published(*temperatures: float) -> wg.Field:
    """The field of the published code in its own coordinates, where each temperature has rms 1."""
    return wg.PublishedField(temperatures or (0.1,), dimensionless=True)


def likelihood(h: float = 0.2) -> wg.Field:
    """The maximum-likelihood field, h a fraction of E|x - y|."""
    return wg.LikelihoodField(wg.Gaussian(h)).relative().normalized()


def energy(beta: float = 1.0) -> wg.Field:
    """The field of the energy score with exponent beta. It has no bandwidth."""
    return wg.EnergyField(beta).normalized()


def mmd_laplace(h: float = 0.2) -> wg.Field:
    """The field of the squared MMD with a Laplace kernel, h a fraction of E|x - y|."""
    # The factor h cancels in the normalisation; it makes the unnormalised field a length.
    return (h * wg.MMDField(wg.Laplace(h))).relative().normalized()


def sinkhorn(epsilon: float = 0.05) -> wg.Field:
    """The Sinkhorn field, epsilon a fraction of (E|x - y|)²; .05 is the R of W-Flow's smallest model."""
    return wg.SinkhornField(epsilon).relative().normalized()


FIELDS: dict[str, Callable[..., wg.Field]] = {
    "drifting": drifting,
    "drifting-relative": drifting_relative,
    "published": published,
    "likelihood": likelihood,
    "energy": energy,
    "mmd-laplace": mmd_laplace,
    "sinkhorn": sinkhorn,
}


def parse(text: str) -> wg.Field:
    """Read fields joined by "+", each with its number after ":", and return their mean.

    Raises:
        ValueError: naming the part that could not be read and the known names.
    """
    fields = [_parse_one(part.strip(), text) for part in text.split("+")]
    if len(fields) == 1:
        return fields[0]
    # DFP does not say how its two bandwidths {0.005, 0.05} combine. The sum would be twice as long.
    return Mixture.of([(1 / len(fields), field) for field in fields])


def _parse_one(part: str, text: str) -> wg.Field:
    name, _, numbers = part.partition(":")
    if name not in FIELDS:
        raise ValueError(
            f"field {text!r}: {name!r} is not one of {', '.join(FIELDS)}; join several with '+'"
        )
    try:
        values = [float(number) for number in numbers.split(",") if numbers]
        if len(values) > 1 and name != "published":
            raise ValueError("wanted one number")
        return FIELDS[name](*values)
    except ValueError as error:
        raise ValueError(
            f"field {text!r}: {numbers!r} after {name!r} cannot be used: {str(error).rstrip('.')}. "
            "Examples: drifting:0.005+drifting:0.05, energy:0.5, published:0.02,0.05,0.2"
        ) from error


def unnormalized(field: wg.Field) -> wg.Field:
    """The same field as a displacement in action units, whose size says how far the samples are from rest.

    A normalised field has the same rms everywhere. The published one is only scaled back to action units: its rms is
    fixed by its definition.
    """
    match field:
        case Mixture():
            return replace(field, fields=tuple(unnormalized(part) for part in field.fields))
        case Normalized():
            return field.field.relative()
        case wg.PublishedField():
            return replace(field, dimensionless=False)
        case _:
            return field
