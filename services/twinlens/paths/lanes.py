"""The forward passes of a window, two at a time on a CPU.

A pass of short texts cannot keep many threads busy. Two passes side by side, each with half of the threads, are faster
than two in turn with all of them. The passes of both paths wait in one queue, and each lane takes the next one when it
is free, so neither lane waits long for the other. Lanes share the weights of the models and nothing else. Several
threads may call a model of transformers at once: its `utils/output_capturing.py` keeps what a call collects in a
ContextVar. A few kinds of models keep something of a call in their modules, and do not allow it (`model.keeps_state`).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

import torch

Pass = Callable[[int], None]  #: called with the number of its lane, from 0


class Lanes:
    """Two lanes where `two` and torch has two threads or more, else one: the calling thread.

    The second thread is a daemon, unlike the threads of an executor. So it still takes the passes of the last window
    when the process ends, and a pass that hangs does not keep the process alive.
    """

    def __init__(self, two: bool) -> None:
        self._all = torch.get_num_threads()
        self._calls: queue.SimpleQueue[tuple[Future[None], deque[Pass]] | None] | None = None
        self._set = threading.local()
        if two and self._all > 1:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._beside, name="twinlens-lane", args=(self._calls,), daemon=True).start()

    @property
    def count(self) -> int:
        return 1 if self._calls is None else 2

    def run(self, passes: Iterable[Pass]) -> None:
        """Run all `passes`, started in this order. Give the most expensive first, so that both lanes end together.

        A single pass gets all of torch's threads. Raises what a pass raises; by then no pass is running.
        """
        waiting = deque(passes)
        if self._calls is None or len(waiting) < 2:
            self._threads(self._all)
            _work(waiting, 0)
            return
        half = self._all // 2
        begun: Future[None] = Future()
        self._calls.put((begun, waiting))
        self._threads(self._all - half)
        try:
            _work(waiting, 0)
        finally:
            wait([begun])
        begun.result()

    def close(self) -> None:
        """End the second thread."""
        if self._calls is not None:
            self._calls.put(None)

    def _beside(self, calls: queue.SimpleQueue[tuple[Future[None], deque[Pass]] | None]) -> None:
        self._threads(self._all // 2)
        while (call := calls.get()) is not None:
            begun, waiting = call
            try:
                _work(waiting, 1)
                begun.set_result(None)
            except BaseException as error:  # noqa: BLE001 - it comes out in `run`
                begun.set_exception(error)
            del call, begun, waiting

    def _threads(self, count: int) -> None:
        """torch keeps a number of threads per calling thread, and makes new pools whenever it is set."""
        if getattr(self._set, "count", None) != count:
            torch.get_num_threads()  # else a thread's first operation would take the process's number instead
            torch.set_num_threads(count)
            self._set.count = count


def _work(waiting: deque[Pass], lane: int) -> None:
    """Take passes until there are none, or one has raised."""
    while True:
        try:
            run = waiting.popleft()
        except IndexError:
            return
        try:
            run(lane)
        except BaseException:
            waiting.clear()
            raise
        del run  # it holds a window's records
