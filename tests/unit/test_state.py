"""The fold over comparison records and its summary: exact in any order, deaf to replays, the same after a restart."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.comparisons import (
    MINUTE,
    NOW,
    comparison,
    folded,
    interleaved,
    new_state,
    through_json,
    topics,
    unhurried,
    without_alerts,
)
from twinlens.monitor.state import ALERTS_KEPT, BUCKET_MS, Counts
from twinlens.monitor.summary import Summary, summary
from twinlens.records import ComparisonRecord, Tally


class TestFold:
    @unhurried
    @given(st.data())
    def test_the_order_of_partitions_does_not_matter(self, data: st.DataObject) -> None:
        partitions = data.draw(topics())
        one, other = (folded(data.draw(interleaved(partitions))) for _ in range(2))
        assert without_alerts(summary(one, NOW)) == without_alerts(summary(other, NOW))
        assert one.buckets == other.buckets
        assert one.compute_ns == other.compute_ns

    @unhurried
    @given(st.data())
    def test_a_state_goes_on_from_json_as_if_nothing_had_been(self, data: st.DataObject) -> None:
        records = data.draw(interleaved(data.draw(topics())))
        cut = data.draw(st.integers(0, len(records)))
        resumed = folded(records[cut:], through_json(folded(records[:cut])))
        straight = folded(records)
        assert resumed == straight
        assert msgspec.json.encode(summary(resumed, NOW)) == msgspec.json.encode(summary(straight, NOW))

    @unhurried
    @given(st.data())
    def test_reading_everything_again_changes_only_the_count_of_replays(self, data: st.DataObject) -> None:
        partitions = data.draw(topics())
        state = folded(data.draw(interleaved(partitions)))
        before = through_json(state)
        again = data.draw(interleaved(partitions))
        folded(again, state)
        assert state.repeated == before.repeated + len(again)
        state.repeated = before.repeated
        assert state == before

    @unhurried
    @given(topics())
    def test_records_are_not_changed_nor_kept(self, partitions: list[list[ComparisonRecord]]) -> None:
        records = [record for partition in partitions for record in partition]
        before = msgspec.json.encode(records)
        folded(records)
        assert msgspec.json.encode(records) == before

    def test_a_window_redone_with_other_bounds(self) -> None:
        aborted, redone = [comparison(0, 9)], [comparison(0, 4), comparison(5, 9), comparison(10, 12)]
        state = folded(aborted + redone)
        assert (state.total.tally.tweets, state.repeated, state.overlapping_tweets) == (13, 2, 0)
        assert state.offsets == {"tweets/0": 12}

    def test_a_partial_overlap_is_counted_in_full_and_reported(self) -> None:
        state = folded([comparison(0, 9), comparison(6, 14)])
        assert (state.total.tally.tweets, state.repeated, state.overlapping_tweets) == (19, 0, 4)

    def test_an_overlap_is_no_larger_than_the_record(self) -> None:
        sparse = comparison(0, 14, tally=Tally(tweets=2), derived=1, refused={"not_json": 1})
        assert folded([comparison(0, 9), sparse]).overlapping_tweets == 4

    def test_partitions_and_topics_have_their_own_offsets(self) -> None:
        state = folded([comparison(), comparison(source_partition=1), comparison(source_topic="other")])
        assert state.repeated == 0
        assert state.offsets == {"tweets/0": 9, "tweets/1": 9, "other/0": 9}

    def test_refuses_a_record_of_another_application_and_stays_as_it_was(self) -> None:
        state = new_state()
        with pytest.raises(ValueError, match="stranger"):
            state.fold(comparison(application="stranger"))
        assert state == new_state()

    def test_compute_time_is_exact_in_any_order(self) -> None:
        # Floats: 1e8 + 1e-8 + 1e-8 is not 1e-8 + 1e-8 + 1e8.
        orders = [[1e8, 1e-8, 1e-8], [1e-8, 1e-8, 1e8]]
        states = [
            folded([comparison(source_partition=n, compute_s=s) for n, s in enumerate(order)]) for order in orders
        ]
        assert states[0].compute_ns == states[1].compute_ns == 10**17 + 20

    def test_buckets_of_more_than_an_hour_are_dropped_and_not_taken_up_again(self) -> None:
        state = folded([comparison(0, 9), comparison(10, 19, published_at_ms=NOW + 61 * MINUTE)])
        assert list(state.buckets) == [(NOW + 61 * MINUTE) // BUCKET_MS * BUCKET_MS]
        state.fold(comparison(20, 29, published_at_ms=NOW))
        assert len(state.buckets) == 1
        assert state.total.tally.tweets == 30
        assert summary(state, NOW + 61 * MINUTE).windows["1h"].tally.tweets == 10


@unhurried
@given(topics())
def test_adding_counts_is_associative_and_commutative(partitions: list[list[ComparisonRecord]]) -> None:
    records = [record for partition in partitions for record in partition]

    def added(parts: Sequence[Counts]) -> Counts:
        total = Counts()
        for part in parts:
            total.add(part)
        return total

    parts = [Counts.of(record) for record in records]
    middle = len(parts) // 2
    assert added(parts) == added(parts[::-1]) == added([added(parts[:middle]), added(parts[middle:])])


class TestAlerts:
    def test_are_raised_once_and_cleared(self) -> None:
        bad = [comparison(n * 10, n * 10 + 9, tally=Tally(tweets=10, label=5), window=f"w{n}") for n in range(5)]
        state = folded(bad, new_state(1_000))
        assert summary(state, NOW).alert_active
        [alert] = state.alerts
        assert (alert.window, alert.raised_at_ms, alert.cleared_at_ms, alert.rate) == ("w0", NOW, None, 0.5)
        state.fold(comparison(100, 9_999, published_at_ms=NOW + MINUTE))
        assert [each.cleared_at_ms for each in state.alerts] == [NOW + MINUTE]
        assert not summary(state, NOW).alert_active

    def test_the_rate_is_that_of_the_minute_before(self) -> None:
        calm = comparison(0, 99, published_at_ms=NOW - 2 * MINUTE)
        recent = comparison(100, 109, published_at_ms=NOW - MINUTE // 2)
        [alert] = folded([calm, recent, comparison(110, 119, tally=Tally(tweets=10, score=10))]).alerts
        assert alert.rate == 0.5

    def test_a_record_of_refusals_only_raises_nothing(self) -> None:
        state = folded([comparison(tally=Tally(), refused={"not_json": 10})])
        assert state.alerts == []
        assert state.detector == new_state().detector

    def test_the_evidence_is_that_of_compared_tweets(self) -> None:
        compared = comparison(0, 9, tally=Tally(tweets=10, label=5))
        assert folded([msgspec.structs.replace(compared, derived=90)]).detector == folded([compared]).detector
        [alert] = folded([msgspec.structs.replace(compared, derived=90)]).alerts
        assert alert.rate == 0.5
        state = folded([comparison(tally=Tally(), derived=10)])
        assert (state.alerts, state.detector, state.total.published) == ([], new_state().detector, 10)

    def test_only_the_last_ones_are_kept(self) -> None:
        state, offset = new_state(), 0
        for n in range(ALERTS_KEPT + 5):
            state.fold(comparison(offset, offset + 9, tally=Tally(tweets=10, label=10), window=f"w{n}"))
            state.fold(comparison(offset + 10, offset + 10_009))
            offset += 10_010
        assert [alert.window for alert in state.alerts] == [f"w{n}" for n in range(5, ALERTS_KEPT + 5)]


@unhurried
@given(st.data(), st.integers(-80 * MINUTE, 80 * MINUTE))
def test_a_summary_is_json_of_plain_numbers_and_leaves_the_state_alone(data: st.DataObject, ahead: int) -> None:
    state = folded(data.draw(interleaved(data.draw(topics()))))
    before = msgspec.json.encode(state)
    seen = summary(state, NOW + ahead)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Summary) == seen  # NaN would come back as None
    assert msgspec.json.encode(state) == before
