"""Micro-batches of least cost within the limits, and a cost model that learns and never blows up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.replica.batching import (
    MAX_FIXED_SHARE,
    Forward,
    Limits,
    WindowSeconds,
    predicted_cost,
    split,
    window_seconds,
    window_size,
)
from twinlens.replica.cost import CostModel
from twinlens.window.window import Reason

Batches = list[list[int]]

lengths_of_texts = st.lists(st.integers(0, 600), max_size=80)
limits = st.builds(Limits, max_items=st.integers(1, 20), max_tokens=st.integers(1, 4_000))
costs = st.builds(
    lambda *coefficients: CostModel(np.array(coefficients)),
    st.floats(1e-6, 1.0),
    st.floats(1e-9, 1e-2),
    st.floats(0.0, 1e-5),
)


def fits(batch: Sequence[int], lengths: Sequence[int], limits: Limits) -> bool:
    if len(batch) == 1:
        return True
    padded = max(1, *(lengths[i] for i in batch))  # a text without tokens counts as one
    return len(batch) <= limits.max_items and len(batch) * padded <= limits.max_tokens


def fixed(order: Sequence[int], size: int) -> Batches:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def all_partitions(rest: list[int]) -> Iterator[Batches]:
    """Every way to put the indices into batches, neighbours in length or not."""
    if not rest:
        yield []
        return
    first, others = rest[0], rest[1:]
    for smaller in all_partitions(others):
        yield [[first], *smaller]
        for position, batch in enumerate(smaller):
            yield [*smaller[:position], [first, *batch], *smaller[position + 1 :]]


class TestSplit:
    @given(lengths=lengths_of_texts, cost=costs, limits=limits)
    def test_every_text_once_and_within_the_limits(self, lengths: list[int], cost: CostModel, limits: Limits) -> None:
        batches = split(lengths, cost, limits)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        assert all(fits(batch, lengths, limits) for batch in batches)

    @given(lengths=st.lists(st.integers(0, 600), min_size=1, max_size=80), cost=costs, limits=limits, data=st.data())
    def test_never_worse_than_batches_of_one_size(
        self, lengths: list[int], cost: CostModel, limits: Limits, data: st.DataObject
    ) -> None:
        size = data.draw(st.integers(1, limits.max_items))
        best = predicted_cost(lengths, split(lengths, cost, limits), cost)
        arrival = list(range(len(lengths)))
        for order in (arrival, sorted(arrival, key=lengths.__getitem__)):
            batches = fixed(order, size)
            if all(fits(batch, lengths, limits) for batch in batches):
                assert best <= predicted_cost(lengths, batches, cost) * (1 + 1e-9)

    @settings(max_examples=60, deadline=None)
    @given(
        lengths=st.lists(st.integers(0, 40), min_size=1, max_size=7),
        cost=costs,
        limits=st.builds(Limits, max_items=st.integers(1, 8), max_tokens=st.integers(1, 200)),
    )
    def test_there_is_no_better_partition(self, lengths: list[int], cost: CostModel, limits: Limits) -> None:
        allowed = (
            batches
            for batches in all_partitions(list(range(len(lengths))))
            if all(fits(batch, lengths, limits) for batch in batches)
        )
        least = min(predicted_cost(lengths, batches, cost) for batches in allowed)
        assert predicted_cost(lengths, split(lengths, cost, limits), cost) == pytest.approx(least)

    def test_nothing(self) -> None:
        assert split([], CostModel(), Limits(4, 100)) == []

    def test_a_dear_pass_makes_one_batch_and_a_cheap_one_many(self) -> None:
        lengths = [3, 50, 4, 49, 5, 48]
        wide = Limits(64, 8_192)
        assert len(split(lengths, CostModel(np.array([10.0, 1e-5, 0.0])), wide)) == 1
        assert len(split(lengths, CostModel(np.array([1e-6, 1e-3, 0.0])), wide)) == 6
        between = split(lengths, CostModel(np.array([1e-2, 1e-4, 0.0])), wide)
        assert sorted(map(sorted, between)) == [[0, 2, 4], [1, 3, 5]]

    def test_a_text_longer_than_the_limit_goes_alone(self) -> None:
        batches = split([10, 500, 10], CostModel(np.array([10.0, 1e-5, 0.0])), Limits(64, 100))
        assert sorted(map(sorted, batches)) == [[0, 2], [1]]

    def test_a_large_window(self) -> None:
        random = np.random.default_rng(1)
        lengths = random.geometric(0.04, 4_096).clip(3, 128).tolist()
        cost, bounds = CostModel(), Limits(64, 8_192)
        batches = split(lengths, cost, bounds)
        assert sorted(index for batch in batches for index in batch) == list(range(4_096))
        assert predicted_cost(lengths, batches, cost) < 0.6 * predicted_cost(lengths, fixed(range(4_096), 64), cost)


rising = st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)), min_size=1, max_size=60).map(
    lambda steps: WindowSeconds(*(np.cumsum(column) for column in zip(*((f + w, f) for f, w in steps), strict=True)))
)


class TestWindowSize:
    @given(seconds=rising, budget_s=st.floats(-10.0, 120.0))
    def test_it_ends_in_time_or_is_as_large_as_it_may_be(self, seconds: WindowSeconds, budget_s: float) -> None:
        size, reason = window_size(seconds, budget_s)
        assert 1 <= size <= len(seconds.total)
        if reason is Reason.BEHIND:
            assert size == len(seconds.total)
            assert seconds.total[-1] > budget_s
        else:
            assert seconds.total[size - 1] <= budget_s
        if reason is Reason.DEADLINE:
            assert seconds.total[size] > budget_s

    @given(seconds=rising, budget_s=st.floats(0.0, 120.0))
    def test_it_is_behind_only_where_no_window_in_time_is_worth_its_fixed_price(
        self, seconds: WindowSeconds, budget_s: float
    ) -> None:
        share = seconds.fixed / seconds.total
        worth = share <= max(MAX_FIXED_SHARE, share[-1])
        _, reason = window_size(seconds, budget_s)
        assert (reason is Reason.BEHIND) == (not (worth & (seconds.total <= budget_s)).any())

    def test_long_texts_in_front_are_no_reason_to_be_late(self) -> None:
        """They make the first texts dear, but no window wasteful."""
        lengths = [100] * 50 + [10] * 450
        cost = CostModel(np.array([1e-6, 2e-5, 2e-8]))
        seconds = window_seconds(lengths, [Forward(cost, Limits(64, 8_192))])
        size, reason = window_size(seconds, 0.5 * seconds.total[-1])
        assert reason is Reason.DEADLINE
        assert 40 < size < 500

    @given(seconds=rising, budget_s=st.floats(-100.0, 0.0))
    def test_all_of_them_when_the_objective_is_broken_anyway(self, seconds: WindowSeconds, budget_s: float) -> None:
        assert window_size(seconds, budget_s) == (len(seconds.total), Reason.BEHIND)

    def test_what_decides(self) -> None:
        seconds = WindowSeconds(np.array([1.3, 2.3, 3.3, 4.3, 5.3]), np.full(5, 0.6))
        assert window_size(seconds, 5.3) == (5, Reason.FULL)
        assert window_size(seconds, 3.5) == (3, Reason.DEADLINE)
        assert window_size(seconds, 2.3) == (5, Reason.BEHIND)  # of 2.3 s 0.6 are more than a quarter


class TestWindowSeconds:
    @given(lengths=st.lists(st.integers(0, 600), min_size=1, max_size=80), cost=costs, limits=limits)
    def test_more_texts_take_longer_and_no_split_is_faster(
        self, lengths: list[int], cost: CostModel, limits: Limits
    ) -> None:
        total, fixed = window_seconds(lengths, [Forward(cost, limits)])
        assert (np.diff(total) > 0).all()
        assert (fixed <= total).all()
        assert total[-1] <= predicted_cost(lengths, split(lengths, cost, limits), cost) * (1 + 1e-9)

    @given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=80), cost=costs, limits=limits)
    def test_two_paths_add_up_and_a_sample_costs_less(
        self, lengths: list[int], cost: CostModel, limits: Limits
    ) -> None:
        one = window_seconds(lengths, [Forward(cost, limits)]).total
        both = window_seconds(lengths, [Forward(cost, limits), Forward(cost, limits)]).total
        audited = window_seconds(lengths, [Forward(cost, limits), Forward(cost, limits, share=0.05)]).total
        assert both == pytest.approx(2 * one)
        assert (one <= audited).all()
        assert (audited <= both).all()

    def test_texts_of_one_length(self) -> None:
        cost = CostModel(np.array([1.0, 0.1, 0.01]))
        total, fixed = window_seconds([10] * 3, [Forward(cost, Limits(2, 1_000))])
        assert total.tolist() == pytest.approx([1 + 2, 1 + 4, 2 + 6])
        assert fixed.tolist() == [1, 1, 2]
