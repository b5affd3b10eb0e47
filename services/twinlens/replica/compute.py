"""The compute thread: draws a window as soon as publish has taken the last one, runs it, and hands it over."""

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

WAIT_S = 0.2  #: for a record, or for publish to take a window, before it looks again whether to stop


class Compute:
    """Owns `inference`. `run` is the thread's body; all else may be called from any thread.

    It draws no window while one waits for publish. The new window could not be committed sooner, and it would be
    smaller than one that is drawn later.
    """

    def __init__(self, backlog: Backlog, inference: Inference, handover: HandOver) -> None:
        self.service_rate = ServiceRate()
        self.unread_records = 0  #: at the broker, when the lag was last measured; set by `Replica.autoscaling_stats`
        self._backlog = backlog
        self._inference = inference
        self._handover = handover
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False

    def stop(self) -> None:
        """Let the thread end after the window that it is computing."""
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
                    # Only a replica that is behind shows how fast it is. Windows grow with what waits, so a replica
                    # that keeps up is busy all the time too, but processes only as much as arrives.
                    if behind:
                        self.service_rate.add(len(window.items), time.monotonic() - start)
                start = time.monotonic()
        finally:
            self._inference.close()
            self._handover.close()

    def _draw(self) -> Window | None:
        """The next window. The backlog is not locked while a change of settings loads tokenizers and pipelines."""
        while True:
            self._apply_changes()
            candidates = self._backlog.candidates(self._inference.max_window_items, WAIT_S)
            if not candidates.items:
                return None
            if self._changes.empty():  # those that came while it waited hold for this window already
                break
        size, dispatch = self._inference.decide(candidates.items, candidates.waiting, now_s=time.time())
        return self._backlog.draw(candidates.items[:size], dispatch)

    def _apply_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get()()

    def _await_taken(self) -> bool:
        """Wait until publish has taken the last window. Returns whether to draw another one."""
        while not self._ending and not self._handover.await_taken(WAIT_S):
            pass
        return not self._ending

    @property
    def _ending(self) -> bool:
        return self._stopping or self._handover.closed
