"""Ctrl-C and SIGTERM as a flag that a loop reads between steps."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """Set `requested` on Ctrl-C or SIGTERM inside the block; a second Ctrl-C interrupts.

    Only the main thread receives signals; in other threads `requested` stays False.
    """

    def __enter__(self) -> StopRequest:
        self.requested = False
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
