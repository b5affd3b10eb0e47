"""The limit on refusals: counted as committed, passed on with the offset."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.observed import DISPATCH
from twinlens.errors import AskUser, RefusalReason, RefuseRecord
from twinlens.replica.refusals import RefusalLimit, Refusals, as_metadata
from twinlens.settings import IntakeSettings
from twinlens.window.item import Item
from twinlens.window.window import Window

P0 = ("tweets", 0)


def window(refused: list[bool], partition: int = 0, first_offset: int = 0) -> Window:
    items = [
        Item("tweets", partition, first_offset + i, 0, None, [], 1,
             refusal=RefuseRecord(RefusalReason.NOT_JSON, "") if bad else None)
        for i, bad in enumerate(refused)
    ]  # fmt: skip
    return Window(1, items, {("tweets", partition): 0}, DISPATCH)


def limit(in_a_row: int | None = None, share: float | None = None) -> RefusalLimit:
    return RefusalLimit(IntakeSettings(max_consecutive_refusals=in_a_row, max_refused_share=share))


def test_as_many_in_a_row_as_allowed_pass_and_one_more_asks_the_user() -> None:
    counting = limit(in_a_row=3)
    counting.committed(counting.after(window([True] * 3)))
    with pytest.raises(AskUser, match=r"4 records in a row of partition 0 of tweets .* at offset 3 .*not_json"):
        counting.after(window([True], first_offset=3))


def test_a_tweet_between_them_starts_the_row_again() -> None:
    counting = limit(in_a_row=3)
    for _ in range(5):
        counting.committed(counting.after(window([True, True, True, False])))


def test_partitions_are_counted_apart() -> None:
    counting = limit(in_a_row=3)
    for partition in (0, 1):
        counting.committed(counting.after(window([True] * 3, partition)))


def test_a_window_that_was_not_committed_is_not_counted() -> None:
    counting = limit(in_a_row=3)
    for _ in range(5):
        counting.after(window([True] * 3))


def test_the_next_owner_goes_on_from_the_committed_count() -> None:
    first, second = limit(in_a_row=3), limit(in_a_row=3)
    second.resume(P0, as_metadata(first.after(window([True] * 3))[P0]))
    with pytest.raises(AskUser):
        second.after(window([True], first_offset=3))


@pytest.mark.parametrize("metadata", ["", "twinlens-abc-1234", "{", "[]", '{"in_a_row":"x"}'])
def test_metadata_of_somebody_else_counts_as_none(metadata: str) -> None:
    counting = limit(in_a_row=1)
    counting.resume(P0, metadata)
    counting.after(window([True]))


def test_a_large_share_asks_the_user_and_a_small_one_never_does() -> None:
    with pytest.raises(AskUser, match="of the last records"):
        limit(share=0.5).after(window([True, True, False] * 2_000))
    counting = limit(share=0.5)
    for _ in range(100):
        counting.committed(counting.after(window([True, False, False] * 20)))


def test_without_limits_everything_may_be_refused() -> None:
    counting = limit()
    for _ in range(10):
        counting.committed(counting.after(window([True] * 1_000)))


@given(st.lists(st.booleans(), max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_where_windows_are_cut_changes_nothing(refused: list[bool], cuts: list[int]) -> None:
    whole = limit()
    edges = sorted({0, len(refused), *(min(cut, len(refused)) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        whole.committed(whole.after(window(refused[start:end], first_offset=start)))
    expected = Refusals()
    for bad in refused:
        expected = expected.after(refused=bad)
    one_more = whole.after(window([True], first_offset=len(refused)))[P0]
    assert one_more == expected.after(refused=True)
    assert 0.0 <= expected.share <= 1.0
    assert msgspec.json.decode(as_metadata(expected), type=Refusals) == expected
