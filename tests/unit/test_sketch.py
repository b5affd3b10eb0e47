"""The quantile sketch: accurate, mergeable in any order, and deaf to nonsense."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.records import Histogram
from twinlens.sketch import ACCURACY, SMALLEST, histogram, merge, quantile

VALUES = st.lists(st.one_of(st.just(0.0), st.floats(SMALLEST, 1e12)), max_size=60)


@given(VALUES.filter(bool), st.floats(0.0, 1.0))
def test_a_quantile_is_within_the_relative_accuracy(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert quantile(histogram(values), q) == pytest.approx(exact, rel=ACCURACY * (1 + 1e-6), abs=0.0)


@given(st.lists(VALUES, max_size=5))
def test_merging_is_sketching_all_values_together(parts: list[list[float]]) -> None:
    together = histogram([value for part in parts for value in part])
    assert merge(histogram(part) for part in parts) == together
    assert merge(histogram(part) for part in reversed(parts)) == together
    assert sum(together.values()) == sum(map(len, parts))


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = histogram(a), histogram(b), histogram(c)
    assert merge([merge([x, y]), z]) == merge([x, merge([y, z])])


def test_merging_leaves_its_inputs_alone() -> None:
    one, other = histogram([1.0]), histogram([1.0, 2.0])
    copies = dict(one), dict(other)
    merge([one, other])
    assert (one, other) == copies


@given(VALUES)
def test_a_sketch_travels_as_json(values: list[float]) -> None:
    sketch = histogram(values)
    assert msgspec.json.decode(msgspec.json.encode(sketch), type=Histogram) == sketch


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-12])
def test_refuses_what_is_not_finite_or_negative(value: float) -> None:
    with pytest.raises(ValueError, match="finite, non-negative"):
        histogram([0.5, value])


def test_what_is_smaller_than_the_smallest_counts_as_zero() -> None:
    assert quantile(histogram([0.0, SMALLEST / 2]), 1.0) == 0.0
    assert quantile(histogram([SMALLEST]), 1.0) == pytest.approx(SMALLEST, rel=0.011)


def test_an_empty_sketch_has_no_quantile() -> None:
    assert histogram([]) == {}
    assert math.isnan(quantile({}, 0.5))


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_lies_between_zero_and_one(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(histogram([1.0]), q)
