"""The window, which is the unit of commit, and the decision to draw it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinlens.window.item import Item, Partition


class Reason(StrEnum):
    """Why a window has the size that it has."""

    DRAINED = "drained"  #: it has all records that waited
    FULL = "full"  #: it has as many records or bytes as a window can hold
    DEADLINE = "deadline"  #: it has as many as finish within the latency objective of the oldest record
    #: Too few would finish in time to be worth a window, so it has as many as it can hold, for the best throughput.
    BEHIND = "behind"


@dataclass(frozen=True)
class Dispatch:
    """The decision to draw a window."""

    reason: Reason
    queue_delay_s: float  #: of the oldest record: from its timestamp to this decision
    predicted_s: float  #: seconds to compute it: the cost model's prediction for both paths, times `overhead`
    overhead: float  #: seconds that recent windows took, divided by the cost model's for passes without padding
    publish_reserve_s: float  #: part of the latency objective that is kept for committing the window
    relative_error: float  #: of recent predictions of whole windows


@dataclass(slots=True)
class Window:
    """Items, in the order of offsets within each partition, and the epochs under which they were read."""

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
        """The offsets to commit: for each partition, the one after its last item."""
        return {item.source: item.offset + 1 for item in self.items}
