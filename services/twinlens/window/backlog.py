"""What waits between intake and the model, and the window drawn from it. Pure but for one lock.

A window is the unit of commit: records in hand, contiguous per partition. Each partition has an epoch that grows
whenever its records in hand become worthless (the partition was revoked, or a window was aborted and its records will
be read again). A window remembers the epochs of its records; it may be committed only while they are still current.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from twinlens.window.item import Item, Partition
from twinlens.window.window import Dispatch, Window

WINDOWS_UNDER_WAY = 2  #: being published; being computed, or waiting to be published


class Abandoned(NamedTuple):
    """What became of a partition of a window that will not be committed."""

    first_offset: int | None  #: of the window; None: not known
    epoch: int  #: the new one, under which it is to be read again


class Backlog:
    """Bounded queue per partition between the intake thread and the compute thread.

    `fill` is called by intake, `candidates` and `draw` by compute, `invalidate` by intake on revocation or re-read. How
    many of the candidates to draw is decided outside, without the lock. Candidates come in whole runs from the
    partition with the oldest record first, so that no partition starves.

    `max_items` bounds what waits, `max_bytes` all that is in hand: what waits and the windows under way. The
    windows under way share half of the bytes, so that large records never stop the flow; a record that is larger than
    a window's share goes alone.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_window_bytes = max_bytes // (2 * WINDOWS_UNDER_WAY)
        self._queues: dict[Partition, deque[Item]] = {}
        self._epochs: dict[Partition, int] = {}
        self._in_flight: dict[Partition, int] = {}
        self._items = 0  # that wait
        self._bytes = 0  # that wait, and of windows under way
        self._drawn = 0
        self._number = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def full(self) -> bool:
        """Whether intake should pause."""
        return self._items >= self._max_items or self._bytes >= self._max_bytes

    @property
    def items(self) -> int:
        """Records that wait."""
        return self._items

    @property
    def size_bytes(self) -> int:
        """Memory of what waits and of the windows under way."""
        return self._bytes

    @property
    def unfinished(self) -> int:
        """Items that wait, and those of windows under way."""
        return self._items + self._drawn

    def in_flight(self, partition: Partition) -> int:
        """Windows under way that hold records of `partition`, of whatever epoch."""
        return self._in_flight.get(partition, 0)

    def epoch(self, partition: Partition) -> int:
        return self._epochs.get(partition, 0)

    def fill(self, partition: Partition, epoch: int, items: Iterable[Item]) -> None:
        """Append items read under `epoch`; they are dropped where the epoch has passed."""
        with self._changed:
            if epoch != self.epoch(partition):
                return
            queue = self._queues.setdefault(partition, deque())
            for item in items:
                queue.append(item)
                self._items += 1
                self._bytes += item.size_bytes
            self._changed.notify_all()

    def invalidate(self, partitions: Iterable[Partition]) -> None:
        """Forget what is in hand of `partitions`; windows that hold some of it can no longer be committed."""
        with self._changed:
            for partition in partitions:
                self._epochs[partition] = self.epoch(partition) + 1
                self._discard(partition)

    def release(self, partitions: Iterable[Partition], budget_s: float) -> bool:
        """Give `partitions` up: drop what waits, let windows under way finish for up to `budget_s`, then invalidate.

        Returns whether all of them finished.
        """
        released = list(partitions)
        with self._changed:
            for partition in released:
                self._discard(partition)
            finished = self._changed.wait_for(lambda: not any(self._in_flight.get(p) for p in released), budget_s)
        self.invalidate(released)
        return finished

    def finish(self, window: Window) -> None:
        """The window was committed, dropped, or will be read again."""
        with self._changed:
            self._bytes -= window.size_bytes
            self._drawn -= len(window.items)
            for partition in window.epochs:
                self._in_flight[partition] -= 1
            self._changed.notify_all()

    def abandon(self, window: Window) -> dict[Partition, Abandoned]:
        """The window will not be committed: invalidate what is still current of it.

        Returns where to read again, for each partition that was still current. Partitions
        with a newer epoch are left alone: they were revoked, or are being read again already, and what was drawn
        since then is good.
        """
        with self._changed:
            still = [p for p, epoch in window.epochs.items() if self.epoch(p) == epoch]
            for partition in still:
                self._epochs[partition] = window.epochs[partition] + 1
                self._discard(partition)
            abandoned: dict[Partition, Abandoned] = {}
            for item in window.items:
                if item.source in still and item.source not in abandoned:
                    abandoned[item.source] = Abandoned(item.offset, self._epochs[item.source])
            return abandoned

    def current(self, window: Window) -> bool:
        """Whether every record of the window is still this replica's to commit."""
        return all(self.epoch(partition) == epoch for partition, epoch in window.epochs.items())

    def candidates(self, max_items: int, timeout_s: float) -> list[Item]:
        """Up to `max_items` items that the next window may hold, oldest first; at least one, if any waits.

        Returns as soon as there are some, empty after `timeout_s` without a record, at once when closed. The items stay
        in the backlog: `draw` takes those that are to make the window.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items > 0 or self._closed, timeout_s)
            return self._candidates(max_items)

    def draw(self, chosen: Sequence[Item], dispatch: Dispatch) -> Window | None:
        """A window of the `chosen` ones, the first of `candidates`; without those that were invalidated since then.

        None where none is left. Every window must come back through `finish`, which gives its bytes free.
        """
        with self._changed:
            items = [item for item in chosen if self._take(item)]
            if not items:
                return None
            self._number += 1
            self._drawn += len(items)
            window = Window(self._number, items, {item.source: self.epoch(item.source) for item in items}, dispatch)
            for partition in window.epochs:
                self._in_flight[partition] = self._in_flight.get(partition, 0) + 1
            self._changed.notify_all()
            return window

    def await_draw(self, timeout_s: float) -> None:
        """Return as soon as nothing waits, or when closed, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._items == 0 or self._closed, timeout_s)

    def close(self) -> None:
        """Let `candidates` return at once from now on when nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, item: Item) -> bool:
        """Take the item from the head of its queue; whether it is still there."""
        queue = self._queues.get(item.source)
        if not queue or queue[0] is not item:
            return False
        queue.popleft()
        self._items -= 1
        return True

    def _discard(self, partition: Partition) -> None:
        for item in self._queues.pop(partition, ()):
            self._items -= 1
            self._bytes -= item.size_bytes

    def _candidates(self, max_items: int) -> list[Item]:
        """Waiting items that fit into a window: partition by partition, the one with the oldest record first."""
        candidates: list[Item] = []
        size_bytes = 0
        for queue in sorted(filter(None, self._queues.values()), key=lambda queue: queue[0].timestamp_ms):
            for item in queue:
                size_bytes += item.size_bytes
                if len(candidates) >= max_items or (candidates and size_bytes > self._max_window_bytes):
                    return candidates
                candidates.append(item)
        return candidates
