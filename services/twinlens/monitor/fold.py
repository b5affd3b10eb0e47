"""What a monitor has read so far and the offsets where it reads next. One lock protects both. Otherwise pure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from twinlens.monitor.state import State
from twinlens.monitor.summary import summary
from twinlens.monitor.view import SnapshotStatus, View
from twinlens.records import DivergenceRecord, decode_comparison, decode_divergence
from twinlens.settings import Settings
from twinlens.window.item import Partition

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Fold:
    """The state, the newest divergences, and the offset of the next record to take from each partition.

    Only the reading thread may call `begin`, `take` and `passed`. Any thread may use the other members.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        self._settings = settings
        self._state = state
        self._positions: dict[Partition, int] = {}
        self._whole = False  # `begin` was called, and no exception has interrupted `take` in the middle
        self._recent: deque[DivergenceRecord] = deque(maxlen=settings.monitor.recent_divergences)
        self._lock = threading.Lock()
        self._records_read = 0
        self._unreadable = 0
        self._caught_up = False

    @property
    def positions(self) -> dict[Partition, int]:
        """The next offset to take, for each partition of both topics."""
        with self._lock:
            return dict(self._positions)

    def view(self, now_ms: int, lag: dict[int, int] | None, snapshot: SnapshotStatus) -> View:
        """Everything to show at `now_ms`. All parts are from the same moment."""
        with self._lock:
            return View(
                summary=summary(self._state, now_ms),
                lag=lag,
                recent=list(self._recent),
                caught_up=self._caught_up,
                unreadable=self._unreadable,
                snapshot=msgspec.structs.replace(snapshot, records_read=self._records_read),
            )

    def image(self, take: Callable[[State, dict[int, int]], T]) -> T | None:
        """Call `take` with the state and the positions in the comparisons topic (by partition), and return its result.

        Neither changes during the call. Returns None before `begin` and after an exception in `Fold.take`.
        """
        topic = self._settings.topics.comparisons
        with self._lock:
            positions = {number: offset for (name, number), offset in self._positions.items() if name == topic}
            return take(self._state, positions) if self._whole else None

    def begin(self, state: State, positions: Mapping[Partition, int]) -> None:
        """Continue from `state`, which contains all records before `positions`."""
        with self._lock:
            self._state, self._positions, self._whole = state, dict(positions), True

    def take(self, polled: Mapping[Partition, Sequence[Any]]) -> None:
        """Count ConsumerRecords. `polled` has them by partition, in the order of their offsets."""
        with self._lock:
            self._whole = False
            for (topic, number), records in polled.items():
                for record in records:
                    self._take(topic, record)
                self._positions[topic, number] = records[-1].offset + 1
            self._whole = True

    def passed(self, positions: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """Move on to `positions`: the reader may have passed transaction markers, which are not records."""
        with self._lock:
            self._positions |= positions
            self._caught_up = self._caught_up or all(self._positions[each] >= end for each, end in ends.items())

    def _take(self, topic: str, record: Any) -> None:
        try:
            if topic == self._settings.topics.comparisons:
                comparison = decode_comparison(record.value)
                if comparison.application == self._settings.application:
                    self._records_read += 1
                    self._state.fold(comparison)
            else:
                divergence = decode_divergence(record.value)
                if divergence.application == self._settings.application:
                    self._recent.append(divergence)
        except (msgspec.MsgspecError, TypeError) as error:
            # Not written by twinlens: skip it, but count it so that it is visible.
            self._unreadable += 1
            log.warning("not a record of twinlens", topic=topic, partition=record.partition, offset=record.offset,
                        error=str(error))  # fmt: skip
