"""What a person at the command line sees when something cannot be done: one line, and exit code 2."""

from __future__ import annotations

import contextlib
import dis
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
        if not isinstance(error, OSError) and not _raised_by_us(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of our own made this error, and not a C function that one of our lines called."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, at = trace.tb_frame.f_code.co_code, trace.tb_lasti
    ours = trace.tb_frame.f_globals["__name__"].partition(".")[0] in OURS
    return ours and dis.opname[code[at]] == "RAISE_VARARGS"
