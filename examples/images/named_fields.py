r"""Fields by name on the command line, with the normalisation of features of drifting models."""

import math

import wgflow as wg

FIELDS = {  # of numbers after the colon; lengths are fractions of the mean distance between features
    "energy": wg.EnergyField,
    "published": lambda *tau: wg.PublishedField(tau),
    "likelihood": lambda *h: wg.LikelihoodField([wg.Gaussian(t) for t in h]),
    "mmd": lambda *h: wg.MMDField([wg.Laplace(t) for t in h]),
    "drift": lambda h: wg.DriftingField(wg.Gaussian(h), skip_self=True),  # Eq. 3
    "sinkhorn": wg.SinkhornField,
}


def field_of(name: str) -> wg.Field:
    """The field "likelihood:.1,.3", or a sum such as "energy:.5+2*published:.2", standardized.

    The terms of a sum are standardized first: each has an rms of 1, "published" of up to 1 per temperature.

    Raises:
        ValueError: naming the text and what was wanted.
    """
    terms = []
    for part in name.split("+"):
        weight, _, plain = part.rpartition("*")
        kind, _, numbers = plain.partition(":")
        try:
            field = FIELDS[kind](*(float(n) for n in numbers.split(","))).standardized()
            if weight and not 0 < float(weight) < math.inf:
                raise ValueError(weight)
            terms.append(float(weight) * field if weight else field)
        except (KeyError, TypeError, ValueError) as error:
            wanted = f'{", ".join(FIELDS)} with numbers, such as "energy:.5" or "likelihood:.1,.3"'
            raise ValueError(
                f"field is {name!r}; wanted a sum of {wanted}, with positive weights."
            ) from error
    return sum(terms[1:], terms[0]).standardized()
