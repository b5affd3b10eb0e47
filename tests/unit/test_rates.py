"""The two rates that autoscaling goes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.rates import ArrivalRate, ServiceRate

P0, P1 = ("tweets", 0), ("tweets", 1)


class TestArrivalRate:
    def test_a_partition_has_a_rate_from_its_second_reading_on(self) -> None:
        arrival = ArrivalRate(horizon_s=60)
        assert arrival.update(0, {P0: 100}) == {}
        assert arrival.update(5, {P0: 200, P1: 7}) == {P0: 20}
        assert arrival.update(10, {P0: 200, P1: 17}) == {P0: 10, P1: 2}

    def test_it_is_zero_once_nothing_has_come_for_the_horizon(self) -> None:
        arrival = ArrivalRate(horizon_s=60)
        arrival.update(0, {P0: 0})
        assert arrival.update(10, {P0: 600}) == {P0: 60}
        assert arrival.update(60, {P0: 600}) == {P0: 10}
        assert arrival.update(69, {P0: 600})[P0] > 0
        assert arrival.update(70, {P0: 600}) == {P0: 0}

    def test_a_partition_that_came_back_counts_what_came_meanwhile(self) -> None:
        arrival = ArrivalRate(horizon_s=60)
        arrival.update(0, {P0: 0})
        arrival.update(10, {P1: 0})
        assert arrival.update(20, {P0: 100, P1: 0}) == {P0: 5, P1: 0}

    def test_a_topic_that_was_created_again_does_not_run_backwards(self) -> None:
        arrival = ArrivalRate()
        arrival.update(0, {P0: 1_000})
        assert arrival.update(1, {P0: 3}) == {P0: 0}

    @given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 500)), min_size=1, max_size=60), st.floats(1, 100))
    def test_it_lies_between_the_slowest_and_the_fastest_interval(
        self, intervals: list[tuple[float, int]], horizon_s: float
    ) -> None:
        arrival = ArrivalRate(horizon_s)
        now_s, end = 0.0, 0
        arrival.update(now_s, {P0: end})
        for seconds, records in intervals:
            now_s, end = now_s + seconds, end + records
            rate = arrival.update(now_s, {P0: end})[P0]
        each = [records / seconds for seconds, records in intervals]
        assert min(each) * 0.999 <= rate <= max(each) * 1.001


class TestServiceRate:
    def test_it_is_zero_before_the_first_window(self) -> None:
        assert ServiceRate().records_per_s == 0

    def test_windows_weigh_by_the_time_they_took(self) -> None:
        rate = ServiceRate(horizon_s=1e9)
        rate.add(10, 1.0)
        rate.add(400, 4.0)
        assert rate.records_per_s == pytest.approx(82)

    def test_what_is_long_ago_is_forgotten(self) -> None:
        rate = ServiceRate(horizon_s=30)
        rate.add(1_000, 10.0)
        for _ in range(20):
            rate.add(100, 10.0)
        assert rate.records_per_s == pytest.approx(10, rel=0.01)

    @given(st.lists(st.tuples(st.integers(1, 1_000), st.floats(1e-3, 100)), min_size=1, max_size=50))
    def test_it_lies_between_the_slowest_and_the_fastest_window(self, windows: list[tuple[int, float]]) -> None:
        rate = ServiceRate()
        for records, busy_s in windows:
            rate.add(records, busy_s)
        each = [records / busy_s for records, busy_s in windows]
        assert min(each) * 0.999 <= rate.records_per_s <= max(each) * 1.001
