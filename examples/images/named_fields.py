r"""Fields by name on the command line, with the normalisation of features of drifting models."""

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
    """The field "likelihood:.1,.3", or a sum such as "energy:.5+2*published:.2", standardized. Raises: ValueError."""
    terms = []
    for part in name.split("+"):
        weight, _, plain = part.rpartition("*")
        kind, _, numbers = plain.partition(":")
        try:
            field = FIELDS[kind](*(float(n) for n in numbers.split(","))).standardized()
            terms.append(float(weight) * field if weight else field)
        except (KeyError, TypeError, ValueError) as error:
            wanted = f'{", ".join(FIELDS)} with numbers, such as "energy:.5" or "likelihood:.1,.3"'
            raise ValueError(f"field is {name!r}; wanted a sum of {wanted}.") from error
    return sum(terms[1:], terms[0]).standardized()
