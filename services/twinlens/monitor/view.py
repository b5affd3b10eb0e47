"""What a monitor shows to the API, the terminal, and callers with a Serve handle. Pure."""

from __future__ import annotations

import msgspec

from twinlens.monitor.summary import Summary
from twinlens.records import DivergenceRecord


class SnapshotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot this monitor started from and the last one it wrote. Times are in milliseconds since the epoch."""

    restored_from_ms: int | None = None  #: when the snapshot it started from was written; None: there was none
    records_read: int = 0  #: comparison records read since this monitor started
    lost_offsets: int = 0  #: removed by retention before they were read: an upper bound of the records not counted
    written_at_ms: int | None = None  #: when this monitor wrote its last snapshot
    written_records: int | None = None  #: comparison records counted in it; the next monitor reads the later ones
    written_bytes: int | None = None
    error: str | None = None  #: why the last attempt to write one failed; None: it did not fail


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the API and the terminal show."""

    summary: Summary
    lag: dict[int, int] | None  #: records behind, per partition of the input topic; None while unknown
    recent: list[DivergenceRecord]  #: the newest diverging tweets, oldest first
    caught_up: bool  #: whether both topics were read to the end offsets that they had at the start
    unreadable: int  #: records of the two topics that twinlens did not write
    snapshot: SnapshotStatus = SnapshotStatus()
