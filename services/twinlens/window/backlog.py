"""The queues of records between intake and the model, and the windows drawn from them. Pure except for one lock.

A window is the unit of commit. Its records are contiguous per partition. "In hand" are the records that wait and those
of windows under way. Each partition has an epoch. It grows when the partition's records in hand become invalid: the
partition was revoked, or a window was aborted and its records will be read again. A window keeps the epochs of its
records and may be committed only while all of them are current.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from twinlens.window.item import Item, Partition
from twinlens.window.window import Dispatch, Window

WINDOWS_UNDER_WAY = 2  #: one is being published, the other is being computed or waits to be published


class Abandoned(NamedTuple):
    """One partition of a window that will not be committed: where to read it again."""

    first_offset: int | None  #: the partition's first offset in the window; None if not known
    epoch: int  #: the new epoch, under which the partition is read again


class Candidates(NamedTuple):
    """What the next window may hold, of what waits."""

    items: list[Item]  #: oldest first
    waiting: int  #: records that wait in all


class Backlog:
    """One bounded queue per partition, between the intake thread and the compute thread.

    Intake calls `fill`, and `invalidate` when partitions are revoked or read again. Compute calls `candidates` and
    `draw`. The caller decides without the lock how many candidates to draw. Candidates are taken partition by
    partition. The partition with the oldest record comes first, so no partition starves.

    `max_items` limits the records that wait. `max_bytes` limits the memory of all records in hand. Half of `max_bytes`
    is shared by the windows under way, so large records never stop the flow. A record that is larger than one window's
    share gets a window of its own.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_window_bytes = max_bytes // (2 * WINDOWS_UNDER_WAY)
        self._queues: dict[Partition, deque[Item]] = {}
        self._epochs: dict[Partition, int] = {}
        self._in_flight: dict[Partition, int] = {}
        self._items = 0  # waiting
        self._bytes = 0  # waiting, and in windows under way
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
        """Memory of the records that wait and of the windows under way."""
        return self._bytes

    @property
    def unfinished(self) -> int:
        """Number of items that wait or are in windows under way."""
        return self._items + self._drawn

    def in_flight(self, partition: Partition) -> int:
        """Number of windows under way that hold records of `partition`, of any epoch."""
        return self._in_flight.get(partition, 0)

    def epoch(self, partition: Partition) -> int:
        return self._epochs.get(partition, 0)

    def fill(self, partition: Partition, epoch: int, items: Iterable[Item]) -> None:
        """Append items that were read under `epoch`. Drops them if the partition has a newer epoch."""
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
        """Drop the waiting records of `partitions`. Windows with records of them can no longer be committed."""
        with self._changed:
            for partition in partitions:
                self._epochs[partition] = self.epoch(partition) + 1
                self._discard(partition)

    def release(self, partitions: Iterable[Partition], budget_s: float) -> bool:
        """Give up `partitions`: drop what waits, wait up to `budget_s` for windows under way, then invalidate.

        Returns whether all these windows finished.
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
        """Give up a window that will not be committed: invalidate its partitions that are still current.

        Returns where to read each of these partitions again. Does not touch partitions that have a newer epoch: they
        were revoked or are being read again already, and records drawn under that epoch are valid.
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
        """Whether this replica may still commit every record of the window."""
        return all(self.epoch(partition) == epoch for partition, epoch in window.epochs.items())

    def candidates(self, max_items: int, timeout_s: float) -> Candidates:
        """Up to `max_items` items for the next window, oldest first; at least one if any record waits.

        Returns as soon as there are some; an empty list after `timeout_s` without a record. Returns at once when
        closed. The items stay in the backlog until `draw` takes them.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items > 0 or self._closed, timeout_s)
            return Candidates(self._candidates(max_items), self._items)

    def draw(self, chosen: Sequence[Item], dispatch: Dispatch) -> Window | None:
        """A window of the `chosen` items, which are the first ones of `candidates`. None if no item is left.

        Leaves out items that were invalidated in the meantime. Call `finish` for every window: it frees the bytes.
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
        """Return as soon as no record waits, or when closed, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._items == 0 or self._closed, timeout_s)

    def close(self) -> None:
        """From now on `candidates` returns at once, even if no record waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, item: Item) -> bool:
        """Take the item from the head of its queue. Returns whether it was still there."""
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
        """Waiting items that fit into one window, by partition. The partition with the oldest record comes first."""
        candidates: list[Item] = []
        size_bytes = 0
        for queue in sorted(filter(None, self._queues.values()), key=lambda queue: queue[0].timestamp_ms):
            for item in queue:
                size_bytes += item.size_bytes
                if len(candidates) >= max_items or (candidates and size_bytes > self._max_window_bytes):
                    return candidates
                candidates.append(item)
        return candidates
