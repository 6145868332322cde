"""Ctrl-C and SIGTERM as a question that a loop answers between two steps."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """Ctrl-C or SIGTERM asks; the loop answers after the step in progress, so that no half step is ever saved.

    A second Ctrl-C stops at once. Signals come to the main thread alone: in another one nothing asks.
    """

    def __enter__(self) -> StopRequest:
        self.asked = False
        heard = (
            (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
            else ()
        )
        self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def _ask(self, number, frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
