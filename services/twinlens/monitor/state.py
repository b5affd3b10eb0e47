"""The fold over `tweets.comparisons`: everything that the monitor counts.

Pure: no Kafka, no Ray, no clock. The monitor may die at any time, because reading the topic again from its beginning
gives the same state. Records of different partitions may then come in another order. All counts, sketches and buckets
are still exactly equal, because each is a minimum, a maximum or a sum of integers. (The last bit of a sum of floats
would depend on the order.) Only `detector` and `alerts` depend on the order, because they use evidence in sequence.

>>> import msgspec
>>> from twinlens.monitor.state import State
>>> from twinlens.monitor.statistics import RateDetector
>>> from twinlens.records import ComparisonRecord, ModelId, Tally
>>> model = ModelId("demo", "1")
>>> record = ComparisonRecord(
...     application="twinlens", replica="r0", window="r0-1", source_topic="tweets", source_partition=0,
...     first_offset=0, last_offset=99, published_at_ms=1_000, raw_model=model, predict_model=model,
...     tally=Tally(tweets=100, label=2),
... )
>>> state = State(application="twinlens", detector=RateDetector(baseline_rate=0.02, run_length_tweets=1_000_000))
>>> state.fold(record)
>>> state.fold(record)  # a window that was redone
>>> state.total.tally.tweets, state.total.tally.diverging, state.repeated, state.offsets
(100, 2, 1, {'tweets/0': 99})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self, TypeVar

import msgspec

from twinlens.monitor.statistics import RateDetector
from twinlens.records import ComparisonRecord, Histogram, ModelId, Tally

BUCKET_MS: Final = 5_000  #: resolution of the time windows
KEPT_MS: Final = 3_600_000  #: buckets that start more than this before the newest one are dropped
ALERTS_KEPT: Final = 100
REPLICAS_KEPT: Final = 100
EARLIER_REPLICAS: Final = "(earlier)"  #: cannot be the name of a replica: application names have no parentheses
ALERT_RATE_MS: Final = 60_000  #: an alert shows the rate over this time before it
_NS_PER_S: Final = 1_000_000_000

K = TypeVar("K", int, str)


class Counts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The counts that are kept for the whole run and for each bucket. Addition is associative and commutative."""

    tally: Tally = msgspec.field(default_factory=Tally)  #: compared tweets
    derived: int = 0  #: tweets published, not compared
    refused: dict[str, int] = msgspec.field(default_factory=dict)  #: dead letters by reason
    labels: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  #: raw label -> predict label -> tweets
    causes: dict[str, int] = msgspec.field(default_factory=dict)
    score_delta: Histogram = msgspec.field(default_factory=dict)
    latency_s: Histogram = msgspec.field(default_factory=dict)
    batch_sizes: dict[int, int] = msgspec.field(default_factory=dict)  #: texts per forward pass -> passes

    @property
    def published(self) -> int:
        """Tweets on both output topics, compared or not."""
        return self.tally.tweets + self.derived

    @classmethod
    def of(cls, record: ComparisonRecord) -> Self:
        """The counts of one record. They share its dicts: add them to others, but never change them."""
        return cls(
            tally=record.tally,
            derived=record.derived,
            refused=record.refused,
            labels=record.labels,
            causes=record.causes,
            score_delta=record.score_delta,
            latency_s=record.latency_s,
            batch_sizes=record.batch_sizes,
        )

    def add(self, other: Counts) -> None:
        """Add `other` to this one in place. `other` does not change, and no part of it is shared afterwards."""
        self.tally = self.tally + other.tally
        self.derived += other.derived
        _add(self.refused, other.refused)
        for raw, row in other.labels.items():
            _add(self.labels.setdefault(raw, {}), row)
        _add(self.causes, other.causes)
        _add(self.score_delta, other.score_delta)
        _add(self.latency_s, other.latency_s)
        _add(self.batch_sizes, other.batch_sizes)


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """The divergence rate was found to be above the acceptable rate."""

    window: str  #: the window whose comparison raised it
    raised_at_ms: int  #: its `published_at_ms`
    rate: float  #: diverging tweets per compared tweet in the minute up to and including that window
    cleared_at_ms: int | None = None  #: `published_at_ms` of the window that ended it; None while it is active


class State(msgspec.Struct, kw_only=True):
    """All comparison records of one application, added up. `msgspec.json` encodes and decodes it without loss."""

    application: str
    detector: RateDetector
    total: Counts = msgspec.field(default_factory=Counts)
    by_length: dict[str, Tally] = msgspec.field(default_factory=dict)  #: by upper bound of the token count
    by_replica: dict[str, Tally] = msgspec.field(default_factory=dict)
    by_revision: dict[str, Tally] = msgspec.field(default_factory=dict)  #: `raw name@revision | predict name@revision`
    tokens: int = 0  #: raw path, padding excluded
    padded_tokens: int = 0  #: raw path, padding included
    compute_ns: int = 0  #: nanoseconds in both paths; an integer, so that the sum does not depend on the order
    records: int = 0  #: comparison records counted
    #: Comparison records that were skipped, because all their offsets were already counted.
    repeated: int = msgspec.field(default=0, name="replayed")
    overlapping_tweets: int = 0  #: upper bound of the tweets counted twice, see `fold`
    offsets: dict[str, int] = msgspec.field(default_factory=dict)  #: `topic/partition` -> last offset counted
    first_published_at_ms: int | None = None
    last_published_at_ms: int | None = None
    buckets: dict[int, Counts] = msgspec.field(default_factory=dict)  #: by start in ms, `BUCKET_MS` apart
    alerts: list[Alert] = msgspec.field(default_factory=list)  #: oldest first, the last `ALERTS_KEPT`

    @property
    def compute_s(self) -> float:
        """Seconds that the windows spent in both paths."""
        return self.compute_ns / _NS_PER_S

    def fold(self, record: ComparisonRecord) -> None:
        """Count one comparison record. Records of one source partition must come in the order of the topic.

        A record is skipped and adds to `repeated` if all its offsets are at or below the last one counted. Either its
        window was processed again under at_least_once delivery, or it comes from an aborted transaction that the
        embedded broker does not hide. A record with only some offsets at or below is counted in full, because its
        counts cannot be split; `overlapping_tweets` then grows by the common offsets, or by the record's tweets and
        dead letters if these are fewer.

        Raises ValueError for a record of another application.
        """
        if record.application != self.application:
            raise ValueError(f"a record of application {record.application!r}, not {self.application!r}")
        partition = f"{record.source_topic}/{record.source_partition}"
        counted_to = self.offsets.get(partition, -1)
        if record.last_offset <= counted_to:
            self.repeated += 1
            return
        if record.first_offset <= counted_to:
            # There may be fewer records than offsets: a transaction marker uses an offset too.
            records = record.published + sum(record.refused.values())
            self.overlapping_tweets += min(counted_to - record.first_offset + 1, records)
        self.offsets[partition] = record.last_offset
        self._count(record)
        self._watch(record)

    def _count(self, record: ComparisonRecord) -> None:
        """Update everything that does not depend on the order."""
        counts = Counts.of(record)
        self.records += 1
        self.total.add(counts)
        for length, tally in record.by_length.items():
            _add_tally(self.by_length, length, tally)
        self._count_replica(record.replica, record.tally)
        _add_tally(self.by_revision, f"{_text(record.raw_model)} | {_text(record.predict_model)}", record.tally)
        self.tokens += record.tokens
        self.padded_tokens += record.padded_tokens
        self.compute_ns += round(record.compute_s * _NS_PER_S)
        self._count_in_time(record.published_at_ms, counts)

    def _count_replica(self, replica: str, tally: Tally) -> None:
        """Count by replica. Each process has a new name, so the oldest replicas are counted together."""
        _add_tally(self.by_replica, replica, tally)
        if len(self.by_replica) > REPLICAS_KEPT:
            oldest = next(name for name in self.by_replica if name != EARLIER_REPLICAS)
            _add_tally(self.by_replica, EARLIER_REPLICAS, self.by_replica.pop(oldest))

    def _count_in_time(self, at_ms: int, counts: Counts) -> None:
        """Add `counts` to the bucket of `at_ms`. Buckets and counts that are too old are dropped.

        What is kept depends only on the newest time, not on the order. The times are from the clocks of the replicas.
        If the clock of one is an hour fast, the time windows (never the totals) lose what the others publish.
        """
        if self.first_published_at_ms is None or self.last_published_at_ms is None:
            self.first_published_at_ms = self.last_published_at_ms = at_ms
        self.first_published_at_ms = min(self.first_published_at_ms, at_ms)
        self.last_published_at_ms = max(self.last_published_at_ms, at_ms)
        start, oldest = bucket_start(at_ms), bucket_start(self.last_published_at_ms) - KEPT_MS
        if start < oldest:
            return
        if start not in self.buckets:  # only in this case can the newest bucket have changed
            self.buckets = {each: kept for each, kept in self.buckets.items() if each >= oldest}
            self.buckets[start] = Counts()
        self.buckets[start].add(counts)

    def _watch(self, record: ComparisonRecord) -> None:
        """Update the detector and the alerts. Only the newest alert can be active."""
        self.detector = self.detector.update(record.tally.tweets, record.tally.diverging)
        active = bool(self.alerts) and self.alerts[-1].cleared_at_ms is None
        if self.detector.alarmed and not active:
            alert = Alert(
                window=record.window,
                raised_at_ms=record.published_at_ms,
                rate=self._rate_before(record.published_at_ms, record.tally),
            )
            self.alerts = [*self.alerts, alert][-ALERTS_KEPT:]
        elif active and not self.detector.alarmed:
            self.alerts[-1] = msgspec.structs.replace(self.alerts[-1], cleared_at_ms=record.published_at_ms)

    def _rate_before(self, at_ms: int, last: Tally) -> float:
        """Diverging per tweet over `ALERT_RATE_MS` up to the bucket of `at_ms`; that of `last` if no bucket is left."""
        end = bucket_start(at_ms)
        minute = [counts.tally for start, counts in self.buckets.items() if end - ALERT_RATE_MS < start <= end]
        tallies = minute or [last]
        return sum(tally.diverging for tally in tallies) / sum(tally.tweets for tally in tallies)


def bucket_start(at_ms: int) -> int:
    """Start of the bucket that contains `at_ms`."""
    return at_ms // BUCKET_MS * BUCKET_MS


def _text(model: ModelId) -> str:
    return f"{model.name}@{model.revision}"


def _add(total: dict[K, int], counts: Mapping[K, int]) -> None:
    for key, count in counts.items():
        total[key] = total.get(key, 0) + count


def _add_tally(total: dict[str, Tally], key: str, tally: Tally) -> None:
    total[key] = total.get(key, Tally()) + tally
