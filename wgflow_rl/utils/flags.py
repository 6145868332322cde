"""Checks of numbers given as flags; the messages name the flag."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_type_hints

MOST = 1_000_000  # largest size or count of an agent; what still exceeds the memory is an error of its own


def at_least(least: float, **numbers: float | None) -> None:
    """Raise ValueError for the first number that is NaN or below `least`, naming its flag; None: not given."""
    for name, value in numbers.items():
        if value is not None and not value >= least:
            raise ValueError(f"--{_flag(name)} is {value}; wanted at least {least}")


def at_most(most: float, **numbers: float | None) -> None:
    """Raise ValueError for the first number above `most`, naming its flag; None: not given."""
    for name, value in numbers.items():
        if value is not None and not value <= most:
            raise ValueError(f"--{_flag(name)} is {str(value)[:30]}; wanted at most {most:,}")


def fraction(**numbers: float) -> None:
    """Raise ValueError for the first number outside [0, 1], naming its flag."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"--{_flag(name)} is {value}; wanted a share in [0, 1]")


def above(least: float, **numbers: float) -> None:
    """Raise ValueError for the first number that is not finite and above `least`, naming its flag."""
    for name, value in numbers.items():
        if not least < value < math.inf:
            raise ValueError(f"--{_flag(name)} is {value}; wanted a number above {least}")


def _flag(name: str) -> str:
    return name.replace("_", "-")


# ---- limits as types of settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """Part of the type of a field: a check above, which is given the field by name."""

    check: Callable[..., None]


Count = Annotated[int, Limit(partial(at_least, 1))]
TwoOrMore = Annotated[int, Limit(partial(at_least, 2))]
NonNegative = Annotated[float, Limit(partial(at_least, 0))]
Positive = Annotated[float, Limit(partial(above, 0))]
Share = Annotated[float, Limit(fraction)]


def check_limits(settings: Any) -> None:
    """Raise ValueError for the first field of a dataclass outside the limits of its type, naming its flag."""
    for owner in type(
        settings
    ).__mro__:  # all: a subclass may declare a field again, without limits
        for name, kind in get_type_hints(owner, include_extras=True).items():
            for limit in getattr(kind, "__metadata__", ()):
                if isinstance(limit, Limit):
                    limit.check(**{name: getattr(settings, name)})
