"""What people see of the fold: time windows, throughput, quantiles, and None where nothing is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.comparisons import MINUTE, NOW, comparison, folded
from twinlens.monitor.state import BUCKET_MS
from twinlens.monitor.statistics import confidence_sequence
from twinlens.monitor.summary import WindowSummary, summary
from twinlens.records import Tally
from twinlens.sketch import histogram


class TestSummary:
    def test_what_is_unknown_is_none(self) -> None:
        seen = summary(folded([]), NOW)
        assert list(seen.windows) == ["1m", "5m", "1h", "all"]
        for window in seen.windows.values():
            assert (window.tally.rate, window.tally.low, window.tally.high) == (None, 0.0, 1.0)
            assert window.tweets_per_s is window.batch_size_median is window.batch_size_mean is None
            assert set(window.score_delta.values()) == {None}
        assert seen.padding_share is None

    def test_time_windows_take_what_is_in_them(self) -> None:
        ages = [0, 30_000, 2 * MINUTE, 30 * MINUTE, 59 * MINUTE]
        state = folded([comparison(source_partition=n, published_at_ms=NOW - age) for n, age in enumerate(ages)])

        def tweets(now_ms: int) -> list[int]:
            return [window.tally.tweets for window in summary(state, now_ms).windows.values()]

        assert tweets(NOW) == [20, 30, 50, 50]
        assert tweets(NOW + 4 * MINUTE) == [0, 20, 40, 50]
        assert tweets(NOW + 61 * MINUTE) == [0, 0, 0, 50]
        assert tweets(NOW - 10 * MINUTE) == [30, 30, 50, 50]  # a replica whose clock is ahead counts as of now

    @given(st.integers(-3 * BUCKET_MS, 3 * BUCKET_MS), st.integers(NOW, NOW + BUCKET_MS))
    def test_a_time_window_is_at_most_a_bucket_shorter_than_its_name(self, within: int, now: int) -> None:
        for name, length in (("1m", MINUTE), ("5m", 5 * MINUTE), ("1h", 60 * MINUTE)):
            at_the_edge = comparison(published_at_ms=now - length + within)
            newest = comparison(source_partition=1, published_at_ms=now)
            seen = summary(folded([at_the_edge, newest]), now).windows[name].tally.tweets
            if not 0 <= within < BUCKET_MS:  # else it depends on where the bucket ends
                assert seen == (20 if within > 0 else 10)

    def test_throughput(self) -> None:
        steady = [comparison(n * 10, n * 10 + 9, published_at_ms=NOW - 600_000 + n * 1_000) for n in range(601)]
        seen = summary(folded(steady), NOW)
        for window in seen.windows.values():
            assert window.tweets_per_s == pytest.approx(10, rel=0.02)
        assert summary(folded(steady[:1]), NOW - 600_000).windows["1m"].tweets_per_s is None

    def test_numbers(self) -> None:
        seen = summary(folded([FULL, comparison(10, 19)]), NOW)
        window = seen.windows["all"]
        assert (window.tally.tweets, window.tally.diverging, window.tally.rate) == (20, 4, 0.2)
        assert (window.tally.low, window.tally.high) == confidence_sequence(4, 20)
        assert (window.batch_size_median, window.batch_size_mean) == (4, 5.0)
        assert (window.labels, window.causes) == ({"good": {"bad": 1, "good": 9}}, {"mode": 4})
        assert window.refused == {"not_json": 3}
        assert seen.padding_share == 0.25
        assert list(seen.by_length) == ["16", "128"]
        assert seen.by_replica["r0"].tweets == 20
        assert list(seen.by_revision) == ["demo@1 | demo@1"]
        assert seen.compute_s == 0.5

    def test_totals_are_of_published_tweets_and_rates_of_compared_ones(self) -> None:
        steady = [
            comparison(n * 10, n * 10 + 9, published_at_ms=NOW - 600_000 + n * 1_000, tally=Tally(tweets=1), derived=9)
            for n in range(601)
        ]
        last = comparison(6_010, 6_019, tally=Tally(), derived=10)  # none of a window may be in the sample
        seen = summary(folded([*steady, comparison(tally=Tally(tweets=1, label=1), source_partition=1), last]), NOW)
        window = seen.windows["all"]
        assert (window.published, window.tally.tweets, window.tally.diverging) == (6_021, 602, 1)
        assert window.tally.rate == 1 / 602
        assert (window.tally.low, window.tally.high) == confidence_sequence(1, 602)
        assert window.tweets_per_s == pytest.approx(10, rel=0.02)
        assert seen.by_replica["r0"].tweets == 602

    @pytest.mark.parametrize(
        ("read", "expected"),
        [
            (lambda window: window.score_delta, {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}),
            (lambda window: window.latency_s, {"p50": 5.0, "p95": 9.5, "p99": 9.9}),
        ],
    )
    def test_quantiles(self, read: Callable[[WindowSummary], dict[str, float]], expected: dict[str, float]) -> None:
        assert read(summary(folded([FULL]), NOW).windows["1m"]) == pytest.approx(expected, rel=0.011)


FULL = comparison(
    tally=Tally(tweets=10, label=1, score=2, one_sided=1, both_failed=1),
    refused={"not_json": 3},
    labels={"good": {"good": 9, "bad": 1}},
    by_length={"128": Tally(tweets=4), "16": Tally(tweets=6)},
    causes={"mode": 4},
    score_delta=histogram([n / 100 for n in range(101)]),
    latency_s=histogram([n / 10 for n in range(101)]),
    batch_sizes={8: 1, 4: 3},
    tokens=75,
    padded_tokens=100,
    compute_s=0.5,
)
