"""Ctrl-C and its kin, taken at a moment when the run can be saved; and the ways in which a run ends early."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

IMPATIENT_AFTER_SECONDS = 1.0


class InterruptedRunError(Exception):
    """The user, or the end of the process that started this one, asked the run to stop; it was saved before."""


class DivergedRunError(Exception):
    """NaN or infinity in a loss or in the inner weights: going on would only waste time."""


class StopRequest:
    """Remembers that a stop was asked for; the training loop looks at it after every step.

    A second Ctrl-C, at least a second after the first, stops at once (the last checkpoint is what remains): a terminal
    and a parent process may both pass on one and the same key press.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._parent = os.getppid()

    def listen(self) -> StopRequest:
        """Takes SIGINT and SIGTERM of this process from now on."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    @property
    def is_asked(self) -> bool:
        """True after a signal, or once the process that started this one has died."""
        return self._asked_at is not None or os.getppid() != self._parent

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > IMPATIENT_AFTER_SECONDS:
            raise KeyboardInterrupt
        if self._asked_at is None:
            print("\nstopping after this step; once more to stop at once", flush=True)
            self._asked_at = now
