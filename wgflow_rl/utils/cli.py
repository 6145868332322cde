"""Errors on the command line: one line and exit code 2 for user errors, a traceback for bugs."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

PACKAGES = ("wgflow", "wgflow_rl", "__main__")


class UserError(RuntimeError):
    """A failure whose message tells the user what to do. Commands print it as one line."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print expected errors as `error: ...` on stderr; exit with 2, or with 130 on Ctrl-C.

    Expected are OSError (files, network), UserError, a failed allocation of memory, and a ValueError
    raised in this project's own code. Any other exception is a bug and keeps its traceback. A reader
    of stdout that stops early, as in `... | head`, ends the command with 141 and no message.
    """
    try:
        yield
        print(end="", flush=True)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise SystemExit(141) from None  # 128 + SIGPIPE, as a shell reports it
        if _out_of_memory(error):
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(f"error: out of memory ({reason}); choose smaller sizes", file=sys.stderr)
            raise SystemExit(2) from error
        if not isinstance(error, OSError | UserError) and not (
            isinstance(error, ValueError) and _raised_here(error)
        ):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _out_of_memory(error: BaseException) -> bool:
    """Return True for failed allocations of Python, numpy and torch, which has no type for those on a CPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (
            isinstance(error, RuntimeError)
            and ("allocate memory" in text or "not enough memory" in text)
        )
    )


def _reader_is_gone() -> bool:
    """Return True if nobody reads stdout any more; what is left to print is then discarded."""
    with contextlib.suppress(AttributeError, OSError):  # no stdout, or no file behind it
        stdout = sys.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            # Otherwise the flush at exit would fail too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
            return True
    return False


def _raised_here(error: BaseException) -> bool:
    """Return True if the innermost frame of the traceback is in this project."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].split(".")[0] in PACKAGES
