"""The hand-over of windows from the compute thread to the publish thread: one at most."""

from __future__ import annotations

import threading

from twinlens.replica.counting import ComparedWindow


class HandOver:
    """Holds one window at most. The thread that ends first closes it; a window that is in it still comes out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._window: ComparedWindow | None = None
        self._closed = False

    @property
    def occupied(self) -> bool:
        """Whether a window waits to be published."""
        return self._window is not None

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, done: ComparedWindow) -> None:
        """Hand a window over. Called by compute, after `await_taken`."""
        with self._changed:
            self._window = done
            self._changed.notify_all()

    def await_taken(self, timeout_s: float) -> bool:
        """Wait until no window is here. Returns whether it is empty. Does not wait when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._window is None or self._closed, timeout_s)
            return self._window is None

    def take(self) -> ComparedWindow | None:
        """The next window, as soon as there is one; None when closed and empty. Called by publish."""
        with self._changed:
            self._changed.wait_for(lambda: self._window is not None or self._closed)
            done, self._window = self._window, None
            self._changed.notify_all()
            return done

    def close(self) -> None:
        """One side has ended: nothing more is put in, or nothing more is taken out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
