"""A snapshot: a `State` and its positions in the comparisons topic, in one record.

Pure: no Kafka, no clock. State and positions are in the same record, so a monitor that continues from it folds each
comparison once, whenever the snapshot was written. The record is msgpack, compressed by zlib. A state consists mostly
of one hour of histograms. The record stores a histogram as two columns, the gaps between its buckets and the counts.
Both are mostly small numbers. For an hour of 1,000 tweets/s with score differences over six decades, the record has
0.5 MB instead of 7.1 MB as JSON.

>>> from twinlens.monitor.state import State
>>> from twinlens.monitor.snapshot import Snapshot, pack, to_msgpack, unpack
>>> from twinlens.monitor.statistics import RateDetector
>>> state = State(application="twinlens", detector=RateDetector(baseline_rate=0.02, run_length_tweets=1_000_000))
>>> snapshot = Snapshot(state=state, topic="tweets.comparisons", topic_id="", positions={0: 7, 1: 0}, written_at_ms=1)
>>> unpack(pack(to_msgpack(snapshot))) == snapshot
True
>>> snapshot.start({0: 9, 1: 0, 2: 0})
({0: 9, 1: 0, 2: 0}, 2)
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Final

import msgspec

from twinlens.monitor.state import State
from twinlens.monitor.statistics import RateDetector

VERSION: Final = 1  #: increase it when an older snapshot would get another meaning
HEADERS: Final = [("content-type", b"application/vnd.msgpack"), ("content-encoding", b"deflate")]
_COLUMNS: Final = 1  #: msgpack extension type of a histogram
_LEVEL: Final = 6  #: of zlib; level 1 is three times as fast, but the record is a sixth larger


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a monitor continues from. `state` is shared, not copied: call `to_msgpack` before the state changes."""

    version: int = VERSION
    state: State
    topic: str  #: the comparisons topic
    topic_id: str  #: a new topic with the same name has another id, and other records at these positions
    positions: dict[int, int]  #: partition of that topic -> offset of the next record to fold
    lost_offsets: int = 0  #: see `start`; the sum over this monitor and all before it
    written_at_ms: int

    def start(self, beginnings: Mapping[int, int]) -> tuple[dict[int, int], int]:
        """The offset to continue at, by partition, and how many offsets were removed before they were folded.

        `beginnings` has the first offset that still exists, for every partition of the topic. A partition that is not
        in the snapshot is read from its beginning. The number of offsets is an upper bound of the number of records,
        because transaction markers use offsets too.
        """
        positions = {
            partition: max(beginning, self.positions.get(partition, beginning))
            for partition, beginning in beginnings.items()
        }
        return positions, sum(offset - self.positions.get(number, offset) for number, offset in positions.items())

    def state_for(self, detector: RateDetector) -> State:
        """The state to continue with. It gets `detector` if the settings of its own detector are different."""
        own = self.state.detector
        if (own.baseline_rate, own.run_length_tweets) == (detector.baseline_rate, detector.run_length_tweets):
            return self.state
        return msgspec.structs.replace(self.state, detector=detector)


def to_msgpack(snapshot: Snapshot) -> bytes:
    """Encode the snapshot for `pack`. Takes tens of milliseconds at most, so it can be called under a lock."""
    return _ENCODER.encode(snapshot)


def pack(encoded: bytes) -> bytes:
    """Make the record's value from the result of `to_msgpack`. Takes tenths of a second and needs no lock."""
    return zlib.compress(_ENCODER.encode(_with_columns(msgspec.msgpack.decode(encoded))), _LEVEL)


def unpack(value: bytes) -> Snapshot:
    """Decode a record's value. Raises ValueError if it cannot be read or is of another version."""
    try:
        body = msgspec.msgpack.decode(zlib.decompress(value), ext_hook=_histogram)
        version = msgspec.convert(body, _Versioned).version
        if version != VERSION:
            raise ValueError(f"it has version {version}, not {VERSION}")
        return msgspec.convert(body, Snapshot)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    """The one field that every version has."""

    version: int


def _with_columns(value: Any) -> Any:
    """`value`, in which every mapping from integers to integers is stored as columns."""
    if not isinstance(value, dict):
        return value
    if value and all(type(key) is int and type(count) is int for key, count in value.items()):
        buckets = sorted(value)
        gaps = [after - before for before, after in pairwise((0, *buckets))]
        return msgspec.msgpack.Ext(_COLUMNS, _ENCODER.encode((gaps, [value[bucket] for bucket in buckets])))
    return {key: _with_columns(inner) for key, inner in value.items()}


def _histogram(code: int, data: memoryview) -> dict[int, int]:
    if code != _COLUMNS:
        raise ValueError(f"it has an unknown extension type: {code}")
    gaps, counts = _DECODER.decode(data)
    return dict(zip(accumulate(gaps), counts, strict=True))


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(tuple[list[int], list[int]])
