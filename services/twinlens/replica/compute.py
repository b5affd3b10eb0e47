"""The compute thread: draws a window as soon as the last one is with publish, runs it, and hands it over."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from twinlens.rates import ServiceRate
from twinlens.replica.handover import HandOver
from twinlens.replica.inference import Inference
from twinlens.settings import BatchingSettings, PredictSettings, RawSettings
from twinlens.window.backlog import Backlog
from twinlens.window.window import Window

WAIT_S = 0.2  #: for a record, or for publish to take a window; then it looks whether it is to stop


class Compute:
    """Owns `inference`. `run` is the thread's body; all else may be called from any thread.

    While a window waits for publish none is drawn: it could be committed no sooner, and would be smaller than it is
    later.
    """

    def __init__(self, backlog: Backlog, inference: Inference, handover: HandOver) -> None:
        self.service_rate = ServiceRate()
        self.unread_records = 0  #: at the broker, when the lag was last measured; set by whoever measures it
        self._backlog = backlog
        self._inference = inference
        self._handover = handover
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False

    def stop(self) -> None:
        """Let the thread end with the window that it computes now."""
        self._stopping = True

    def reconfigure(self, batching: BatchingSettings, raw: RawSettings, predict: PredictSettings) -> None:
        """Change `inference` before the next window."""
        self._changes.put(lambda: self._inference.reconfigure(batching, raw, predict))

    def run(self) -> None:
        """Until `stop`, or until publish has ended."""
        try:
            start = time.monotonic()
            while self._await_taken():
                window = self._draw()
                if window is not None:
                    behind = self._backlog.items > 0 or self.unread_records > self._inference.max_window_items
                    self._handover.put(self._inference.run(window))
                    # Only a replica that is behind shows what it can do: windows grow with what waits, so that one
                    # that is not gets through just as much as arrives, and is busy all the same.
                    if behind:
                        self.service_rate.add(len(window.items), time.monotonic() - start)
                start = time.monotonic()
        finally:
            self._inference.close()
            self._handover.close()

    def _draw(self) -> Window | None:
        """The next window. Loading what a change of settings asks for takes time, and holds no lock of the backlog."""
        self._apply_changes()
        candidates = self._backlog.candidates(self._inference.max_window_items, WAIT_S)
        if not candidates:
            return None
        self._apply_changes()  # what came while it waited holds for this window already
        size, dispatch = self._inference.decide(candidates, self._backlog.items, now_s=time.time())
        return self._backlog.draw(candidates[:size], dispatch)

    def _apply_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get()()

    def _await_taken(self) -> bool:
        """Wait until publish has taken what was handed over; whether there shall be another window then."""
        while not self._ending and not self._handover.await_taken(WAIT_S):
            pass
        return not self._ending

    @property
    def _ending(self) -> bool:
        return self._stopping or self._handover.closed
