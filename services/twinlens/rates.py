"""Rates measured while the stream runs. Pure: time is passed in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from twinlens.window.item import Partition


@dataclass
class ServiceRate:
    """Records per second of work, exponentially weighted over seconds of work.

    >>> rate = ServiceRate()
    >>> rate.records_per_s
    0.0
    >>> rate.add(records=300, busy_s=1.0)
    >>> rate.add(records=100, busy_s=1.0)
    >>> round(rate.records_per_s)
    198
    """

    horizon_s: float = 30.0  #: work this long ago counts a third
    _records: float = field(default=0.0, init=False)
    _busy_s: float = field(default=0.0, init=False)

    def add(self, records: int, busy_s: float) -> None:
        """`records` took `busy_s` seconds."""
        weight = math.exp(-busy_s / self.horizon_s)
        self._records = self._records * weight + records
        self._busy_s = self._busy_s * weight + busy_s

    @property
    def records_per_s(self) -> float:
        """0 while nothing has been measured."""
        return self._records / self._busy_s if self._busy_s > 0 else 0.0


class ArrivalRate:
    """How fast the ends of partitions grew over the last `horizon_s`.

    A plain mean, not an exponential one. It is 0 when nothing has come for that long. A burst counts only for its share
    of the time, since it is part of the lag already.
    """

    def __init__(self, horizon_s: float = 60.0) -> None:
        self._horizon_s = horizon_s
        self._readings: deque[tuple[float, Mapping[Partition, int]]] = deque()

    def update(self, now_s: float, ends: Mapping[Partition, int]) -> dict[Partition, float]:
        """Take a reading at `now_s`. Returns records per second of each partition that has an earlier reading."""
        self._readings.append((now_s, ends))
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - self._horizon_s:
            self._readings.popleft()
        rates = {}
        for partition, end in ends.items():
            since_s, first = next((at_s, seen[partition]) for at_s, seen in self._readings if partition in seen)
            if since_s < now_s:
                rates[partition] = max(0, end - first) / (now_s - since_s)
        return rates
