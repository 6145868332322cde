"""What a person at the command line sees when something cannot be done: one line, and exit code 2."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

OURS = {"wgflow", "wgflow_rl", "__main__"}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an expected error as `error: ...` on stderr and exit with code 2; Ctrl-C exits with 130.

    Expected are errors of the system (OSError: files, network), and the ValueErrors and RuntimeErrors that our own code
    raises, whose messages say what to do. The same types raised inside another package are bugs: their traceback stays.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    except (OSError, ValueError, RuntimeError) as error:
        if not isinstance(error, OSError) and _raised_in(error) not in OURS:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _raised_in(error: BaseException) -> str:
    """The top-level package of the code that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_globals["__name__"].partition(".")[0]
