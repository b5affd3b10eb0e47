"""What the terminal and the API show of a `State`: rates with their intervals, quantiles, tables.

Every value can be written as JSON: an unknown value is None, never NaN. Every field is always present.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Final

import msgspec

from twinlens.monitor.state import BUCKET_MS, KEPT_MS, Alert, Counts, State
from twinlens.monitor.statistics import confidence_sequence
from twinlens.records import Histogram, Tally
from twinlens.sketch import quantile

WINDOWS_MS: Final[Mapping[str, int]] = {"1m": 60_000, "5m": 300_000, "1h": KEPT_MS}  #: ascending
ALL: Final = "all"
ALPHA: Final = 0.05  #: 1 - the level of the intervals
_SHORTEST_SPAN_MS: Final = 1_000  #: a throughput over less time than this means nothing


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of compared tweets and their divergence rate. In sampled mode these are a sample of the published tweets.

    `low` and `high` are a 95 % confidence sequence (`statistics.confidence_sequence`). For sums that only grow ("all",
    by length, replica, revision; each one separately) it is valid at all looks at once. A sliding time window drops old
    tweets. For one fixed start of the window it is valid at all looks from that start on, but it is not valid for all
    positions of the window at once.
    """

    tweets: int
    diverging: int
    label: int
    score: int
    one_sided: int
    both_failed: int
    rate: float | None  #: diverging tweets per compared tweet; None if there are none compared
    low: float
    high: float


class WindowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One period of time. Quantiles have a relative error of at most 1 % (`twinlens.sketch`)."""

    published: int  #: tweets on both output topics; `tally.tweets` of them were compared
    tally: Rate
    refused: dict[str, int]  #: dead letters by reason
    tweets_per_s: float | None  #: published tweets; None if the period is shorter than a second
    score_delta: dict[str, float | None]  #: p50, p90, p99, max
    latency_s: dict[str, float | None]  #: p50, p95, p99
    batch_size_median: int | None  #: texts per forward pass of the raw path; of two middle values the lower
    batch_size_mean: float | None
    labels: dict[str, dict[str, int]]  #: raw label -> predict label -> tweets
    causes: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A `State` in the form that people look at."""

    application: str
    at_ms: int  #: the time it is made for
    windows: dict[str, WindowSummary]  #: `1m`, `5m`, `1h`, `all`
    by_length: dict[str, Rate]  #: by upper bound of the token count, ascending
    by_replica: dict[str, Rate]
    by_revision: dict[str, Rate]
    padding_share: float | None  #: share of the raw path's tokens that were padding
    compute_s: float  #: seconds in both paths
    alert_active: bool
    alerts: list[Alert]  #: oldest first
    records: int  #: comparison records counted
    repeated: int = msgspec.field(name="replayed")  #: comparison records skipped, because they were already counted
    overlapping_tweets: int
    offsets: dict[str, int]  #: `topic/partition` -> last offset counted
    first_published_at_ms: int | None
    last_published_at_ms: int | None


def summary(state: State, now_ms: int) -> Summary:
    """The summary of `state` at `now_ms` (wall clock, milliseconds since the epoch). `state` does not change.

    A time window consists of the buckets that start within it, so it is up to `BUCKET_MS` shorter than its name says.
    Its throughput is over this shorter time, or over the time since the very first record if that is less. Tweets
    published later than `now_ms`, by a replica whose clock is ahead, count as published now.
    """
    windows = {
        name: _window(counts, _span_ms(state, start, now_ms)) for name, start, counts in _time_windows(state, now_ms)
    }
    first, last = state.first_published_at_ms, state.last_published_at_ms
    windows[ALL] = _window(state.total, 0 if first is None or last is None else last - first)
    return Summary(
        application=state.application,
        at_ms=now_ms,
        windows=windows,
        by_length=_rates(state.by_length),
        by_replica=_rates(state.by_replica),
        by_revision=_rates(state.by_revision),
        padding_share=1.0 - state.tokens / state.padded_tokens if state.padded_tokens else None,
        compute_s=state.compute_s,
        alert_active=bool(state.alerts) and state.alerts[-1].cleared_at_ms is None,
        alerts=list(state.alerts),
        records=state.records,
        repeated=state.repeated,
        overlapping_tweets=state.overlapping_tweets,
        offsets=_sorted(state.offsets),
        first_published_at_ms=first,
        last_published_at_ms=last,
    )


def _time_windows(state: State, now_ms: int) -> Iterator[tuple[str, int, Counts]]:
    """Name, start and counts of each time window. All windows share one counts object: use it before the next step."""
    newest_first = sorted(state.buckets, reverse=True)
    counts, taken = Counts(), 0
    for name, length_ms in WINDOWS_MS.items():
        start = -(-(now_ms - length_ms) // BUCKET_MS) * BUCKET_MS  # rounded up to the start of a bucket
        while taken < len(newest_first) and newest_first[taken] >= start:
            counts.add(state.buckets[newest_first[taken]])
            taken += 1
        yield name, start, counts


def _span_ms(state: State, start_ms: int, now_ms: int) -> int:
    """The part of a time window that is after the first record."""
    first = state.first_published_at_ms
    return 0 if first is None else now_ms - max(start_ms, first)


def _window(counts: Counts, span_ms: int) -> WindowSummary:
    passes = sum(counts.batch_sizes.values())
    texts = sum(size * count for size, count in counts.batch_sizes.items())
    return WindowSummary(
        published=counts.published,
        tally=_rate(counts.tally),
        refused=_sorted(counts.refused),
        tweets_per_s=counts.published * 1_000 / span_ms if span_ms >= _SHORTEST_SPAN_MS else None,
        score_delta=_quantiles(counts.score_delta, {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}),
        latency_s=_quantiles(counts.latency_s, {"p50": 0.5, "p95": 0.95, "p99": 0.99}),
        batch_size_median=_median(counts.batch_sizes),
        batch_size_mean=texts / passes if passes else None,
        labels={raw: _sorted(counts.labels[raw]) for raw in sorted(counts.labels)},
        causes=_sorted(counts.causes),
    )


def _rate(tally: Tally) -> Rate:
    low, high = confidence_sequence(tally.diverging, tally.tweets, alpha=ALPHA)
    return Rate(
        tweets=tally.tweets,
        diverging=tally.diverging,
        label=tally.label,
        score=tally.score,
        one_sided=tally.one_sided,
        both_failed=tally.both_failed,
        rate=tally.diverging / tally.tweets if tally.tweets else None,
        low=low,
        high=high,
    )


def _rates(tallies: Mapping[str, Tally]) -> dict[str, Rate]:
    # Bounds of the token count are numbers as text: a shorter text is a smaller number.
    return {key: _rate(tallies[key]) for key in sorted(tallies, key=lambda key: (len(key), key))}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """A copy sorted by key, so that equal states give equal bytes."""
    return {key: counts[key] for key in sorted(counts)}


def _quantiles(sketch: Histogram, levels: Mapping[str, float]) -> dict[str, float | None]:
    values = {name: quantile(sketch, level) for name, level in levels.items()}
    return {name: None if isnan(value) else value for name, value in values.items()}


def _median(counts: Mapping[int, int]) -> int | None:
    """The median of counted values (of two middle values the lower), or None if there are none."""
    middle = (sum(counts.values()) - 1) // 2
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen > middle:
            return value
    return None
