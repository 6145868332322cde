"""Cores that this process may use, and worker processes that do not import the script that starts them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def cores() -> int:
    """Number of cores that this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module from processes spawned in this block, so that scripts need no `__main__` guard.

    A spawned process imports the main module when it starts. Without a guard a script would run
    again there: generate its data, and wait for the lock that its parent holds, or train again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
