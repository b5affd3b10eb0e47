"""What a monitor shows: to the API, the terminal, and whoever asks by a handle. Pure."""

from __future__ import annotations

import msgspec

from twinlens.monitor.summary import Summary
from twinlens.records import DivergenceRecord


class SnapshotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this monitor went on from, and what the next one would. Times are in milliseconds since the epoch."""

    restored_from_ms: int | None = None  #: when the snapshot it went on from was written; None: there was none
    records_read: int = 0  #: comparison records read since this monitor's start
    lost_offsets: int = 0  #: that retention removed unread: an upper bound of the comparison records not counted
    written_at_ms: int | None = None  #: when this monitor wrote one last
    written_records: int | None = None  #: comparison records counted in that one; those after it would be read again
    written_bytes: int | None = None
    error: str | None = None  #: why the last try to write one failed; None: it did not


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the API, the terminal and the page show."""

    summary: Summary
    lag: dict[int, int] | None  #: records behind, per partition of the input topic; None while it is not known
    recent: list[DivergenceRecord]  #: the newest diverging tweets, oldest first
    caught_up: bool  #: whether the topics were read to their ends at least once
    unreadable: int  #: records of the two topics that are no records of twinlens
    snapshot: SnapshotStatus = SnapshotStatus()
