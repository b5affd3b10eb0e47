"""The window, the unit of commit: records in hand, contiguous per partition, and the decision to draw it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinlens.window.item import Item, Partition


class Reason(StrEnum):
    """Why a window has the size that it has."""

    DRAINED = "drained"  #: all that waited
    FULL = "full"  #: as much as a window holds, in records or bytes
    DEADLINE = "deadline"  #: as many as end within the latency objective of the oldest
    BEHIND = "behind"  #: too few would end in time to be worth a window: as much as it holds, for the best throughput


@dataclass(frozen=True)
class Dispatch:
    """The decision to draw a window."""

    reason: Reason
    queue_delay_s: float  #: of the oldest record, from its timestamp to this decision
    predicted_s: float  #: to compute it, by the cost model: both paths, times `overhead`
    overhead: float  #: what windows took of late, relative to the cost model's bare passes
    publish_reserve_s: float  #: set aside of the latency objective for committing the window
    relative_error: float  #: of predictions of whole windows, lately


@dataclass(slots=True)
class Window:
    """Items in the order of their partitions' offsets, with the epochs under which they were read."""

    number: int
    items: list[Item]
    epochs: dict[Partition, int]
    dispatch: Dispatch

    @property
    def tweets(self) -> list[Item]:
        return [item for item in self.items if item.refusal is None]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)

    @property
    def next_offsets(self) -> dict[Partition, int]:
        """What to commit: per partition, the offset after the last item."""
        return {item.source: item.offset + 1 for item in self.items}
