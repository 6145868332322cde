"""Worker processes that do not import the script that starts them."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


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
