"""Background threads that cannot die without being noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from twinlens.errors import ReplaceReplica, TwinlensError

log = structlog.get_logger(__name__)


class WatchedThread:
    """A daemon thread that runs `target`. If `target` raises, this is logged and every later `check` fails."""

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._target = target
        self._thread = threading.Thread(target=self._run, name=f"twinlens-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end. Returns whether it ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises ReplaceReplica if an exception has ended the thread."""
        if self.error is not None:
            reason = self.error if isinstance(self.error, TwinlensError) else repr(self.error)
            raise ReplaceReplica(f"the {self.name} thread died: {reason}") from self.error

    def _run(self) -> None:
        try:
            self._target()
        except BaseException as error:
            self.error = error
            log.exception("thread died", thread=self.name)
