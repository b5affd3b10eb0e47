"""A dead letter is one that Kafka takes, whatever the record looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder

from twinlens.errors import RefusalReason, RefuseRecord
from twinlens.replica.outputs import OutputWriter
from twinlens.settings import Settings
from twinlens.window.item import Headers, Item

LIMIT = 50_000
WRITER = OutputWriter(Settings.load({"kafka": {"max_request_bytes": LIMIT}}), "replica-a")


def refused(key: bytes | None, value: bytes, headers: Headers) -> Item:
    refusal = RefuseRecord(RefusalReason.NOT_JSON, "Expecting value")
    return Item("tweets", 0, 5, 0, key, headers, 0, value=value, refusal=refusal)


@pytest.mark.parametrize("name", [pytest.param("h", id="short"), pytest.param("\N{GRINNING FACE}" * 20, id="emoji")])
@pytest.mark.parametrize("count", [1, 300])
def test_many_headers_and_names_that_are_not_ascii_leave_less_room(name: str, count: int) -> None:
    value = b"v" * 60_000
    letter = WRITER.dead_letter(refused(b"key", value, [(name, b"")] * count), now_ms=1)
    assert letter.value is not None
    assert value.startswith(letter.value)
    size = DefaultRecordBatchBuilder.estimate_size_in_bytes(letter.key, letter.value, letter.headers)
    assert LIMIT * 0.8 < size <= LIMIT
    assert dict(letter.headers)["twinlens.cut_from_bytes"] == b"60000"


@given(
    key=st.none() | st.binary(max_size=2_000),
    value=st.builds(lambda count: b"v" * count, st.integers(LIMIT - 8_000, LIMIT + 1_000)),
    header=st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.binary(max_size=20)),
    count=st.integers(0, 300),
)
def test_it_fits_and_is_cut_only_where_it_must_be(
    key: bytes | None, value: bytes, header: tuple[str, bytes], count: int
) -> None:
    letter = WRITER.dead_letter(refused(key, value, [header] * count), now_ms=1)
    assert DefaultRecordBatchBuilder.estimate_size_in_bytes(letter.key, letter.value, letter.headers) <= LIMIT
    assert letter.value is not None
    assert value.startswith(letter.value)
    assert (letter.value != value) == ("twinlens.cut_from_bytes" in dict(letter.headers))
