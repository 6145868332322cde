"""Checks of numbers given as flags; the messages name the flag."""

from __future__ import annotations

import math

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
