"""The signals that ask a run to stop: remembered until the step is done, and agreed upon by all processes."""

import os
import signal
from types import FrameType
from typing import Any

import jax

from jaxformer.devices import has_peers, stop_is_due
from jaxformer.errors import Interrupted


class Signals:
    """SIGTERM and the first Ctrl-C are remembered until the step is done; the second Ctrl-C stops at once. Before the
    first step, while data are prepared, there is nothing to save and both stop at once.

    Of several processes JAX watches for SIGTERM, once they are connected, and lets all stop after the same step,
    whichever was told.
    """

    def __enter__(self) -> "Signals":
        self.received, self.steps = 0, False
        self._previous: dict[int, Any] = {}
        # Where JAX watches for SIGTERM already, a handler of ours would take its place.
        numbers = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the program around us owns the signals
                pass
        return self

    def after_step(self) -> int:
        """Return the signal after which all processes stop after this step, or 0. All must ask at every step."""
        if stop_is_due():
            self.received = signal.SIGTERM
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(130)
        if number == signal.SIGINT and (has_peers() or not self.steps):
            raise KeyboardInterrupt  # of several processes, one cannot stop by itself
        if not self.steps:
            raise Interrupted("stopped by SIGTERM before the first step; run the same command to go on", code=75)
        self.received = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            if number == signal.SIGINT or not jax.distributed.is_initialized():
                signal.signal(number, handler)
