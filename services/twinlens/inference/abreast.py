"""Both paths of a window at the same time, on a CPU.

A forward pass of short texts does not fill many threads: two passes side by side, each with half of them, get through
more than two in turn with all of them. The paths share a model's weights and nothing else; transformers' models may be
called by several threads (its `utils/output_capturing.py` keeps what a call collects in a ContextVar).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Abreast:
    """Calls two functions, abreast where `device` is a CPU and torch has two threads or more, else in turn.

    The second thread is a daemon, unlike an executor's: at the end of the process it still takes the last window's
    call, and a pass that hangs does not keep the process alive.
    """

    def __init__(self, device: str) -> None:
        self._all = torch.get_num_threads()
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None
        self._set = threading.local()
        if device == "cpu" and self._all > 1:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._beside, name="twinlens-raw", args=(self._calls,), daemon=True).start()

    def run(self, first: Callable[[], A], second: Callable[[], B], *, abreast: bool) -> tuple[A, B]:
        """The results of both. With `abreast` false they run in turn, each with all threads.

        Raises what `second` raises, else what `first` raises; neither runs any more then.
        """
        if self._calls is None or not abreast:
            self._threads(self._all)
            return first(), second()
        half = self._all // 2
        begun: Future[A] = Future()
        self._calls.put((begun, lambda: self._with_threads(half, first)))
        try:
            result = self._with_threads(self._all - half, second)
        finally:
            wait([begun])
        return begun.result(), result

    def close(self) -> None:
        """End the second thread."""
        if self._calls is not None:
            self._calls.put(None)

    def _beside(self, calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
        while (call := calls.get()) is not None:
            future, function = call
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it comes out in `run`
                future.set_exception(error)
            del call, future, function  # they hold a window's records

    def _with_threads(self, count: int, function: Callable[[], A]) -> A:
        self._threads(count)
        return function()

    def _threads(self, count: int) -> None:
        """torch's number of threads belongs to the thread that calls it; setting it makes pools anew."""
        if getattr(self._set, "count", None) != count:
            torch.set_num_threads(count)
            self._set.count = count
