"""Letters from headers, choosing among them, and how they look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from rich.console import Console

from twinlens.broker.replay import Outcome, batch_of
from twinlens.dashboard.letters import facts_of, json_of, printable, readable, readable_value, table_of
from twinlens.deadletter import REPLAYED_FROM, DeadLetter, letter_of, overview
from twinlens.errors import RefusalReason, RefuseRecord
from twinlens.replica.outputs import OutputWriter
from twinlens.settings import Settings
from twinlens.window.item import Headers, Item

headers = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=4)


def record(
    offset: int = 0,
    *,
    partition: int = 0,
    reason: RefusalReason = RefusalReason.NOT_JSON,
    application: str = "twinlens",
    key: bytes | None = b"k",
    value: bytes | None = b"{nope",
    own: Headers | None = None,
    now_ms: int = 1_767_225_600_000,
    max_bytes: int = 2**21,
) -> Any:
    """What a consumer gets of a letter that `replica.outputs` has written."""
    item = Item(
        "tweets", 3, 40 + offset, 7, key, own or [], 0, value=value, refusal=RefuseRecord(reason, "because of that")
    )
    settings = Settings.load({"application": application, "kafka": {"max_request_bytes": max_bytes}})
    sent = OutputWriter(settings, "r").dead_letter(item, now_ms)
    return SimpleNamespace(
        topic=sent.topic, partition=partition, offset=offset, key=sent.key, value=sent.value, headers=sent.headers
    )


def letter(**fields: Any) -> DeadLetter:
    found = letter_of(record(**fields))
    assert found is not None
    return found


@given(st.none() | st.binary(max_size=20), st.binary(max_size=20), headers)
def test_a_letter_gives_back_what_was_refused(key: bytes | None, value: bytes, own: Headers) -> None:
    found = letter(offset=5, partition=1, key=key, value=value, own=own)
    assert (found.key, found.value) == (key, value)
    assert found.headers == [header for header in own if not header[0].startswith("twinlens.")]
    assert (found.at, found.topic, found.reason, found.detail) == ("1/5", "tweets.dlq", "not_json", "because of that")
    assert (found.source.topic, found.source.partition, found.source.offset) == ("tweets", 3, 45)
    assert (found.source_timestamp_ms, found.refused_at_ms) == (7, 1_767_225_600_000)
    assert (found.application, found.cut_from_bytes, found.replayed_from) == ("twinlens", None, None)


def test_a_letter_does_not_show_the_tweet_when_it_is_logged() -> None:
    assert "nope" not in repr(letter())


NUMBERS = ["source.partition", "source.offset", "source.timestamp_ms", "refused_at_ms"]


@pytest.mark.parametrize("name", ["reason", "detail", "application", "source.topic", *NUMBERS])
def test_a_record_without_one_of_the_headers_is_no_letter(name: str) -> None:
    foreign = record()
    foreign.headers = [header for header in foreign.headers if header[0] != f"twinlens.{name}"]
    assert letter_of(foreign) is None


@pytest.mark.parametrize("broken", [b"x", b"", b"\xff", None])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_record_with_a_broken_header_is_no_letter(name: str, broken: bytes | None) -> None:
    foreign = record()
    foreign.headers.append((f"twinlens.{name}", broken))
    assert letter_of(foreign) is None


def test_a_letter_that_was_cut_says_so() -> None:
    cut = letter(value=b"x" * 5_000, max_bytes=6_000)
    assert cut.cut_from_bytes == 5_000
    assert len(cut.value or b"") < 5_000


def test_a_letter_that_is_refused_again_has_one_set_of_headers() -> None:
    first = record(5, own=[("h", b"v")])
    replayed = [("h", b"v"), (REPLAYED_FROM, b"tweets.dlq/0/5")]
    again = record(9, own=replayed, reason=RefusalReason.TEXT_TOO_LONG)
    names = [name for name, _ in again.headers]
    assert len(names) == len(set(names))
    assert [header for header in again.headers if header in replayed] == replayed
    moved = record(9, own=[*first.headers, *replayed], reason=RefusalReason.TEXT_TOO_LONG)  # by a tool that keeps all
    assert [name for name, _ in moved.headers].count("twinlens.reason") == 1
    found = letter_of(again)
    assert found is not None
    assert (found.reason, found.replayed_from) == ("text_too_long", "tweets.dlq/0/5")
    assert found.headers == [("h", b"v")]


@pytest.mark.parametrize("name", ["replayed_from", "else"])
def test_a_letter_stays_one_whatever_bytes_somebody_has_put_into_such_headers(name: str) -> None:
    assert letter_of(record(own=[(f"twinlens.{name}", b"\xff\x00")])) is not None
    foreign = record()
    foreign.headers.insert(0, (f"twinlens.{name}", b"\xff\x00"))
    assert letter_of(foreign) is not None


def test_the_overview_counts_all_and_keeps_the_newest() -> None:
    reasons = [RefusalReason.NOT_JSON, RefusalReason.NOT_UTF8]
    letters = [letter(offset=n, partition=n % 2, now_ms=1_000 - n // 3, reason=reasons[n % 2]) for n in range(10)]
    others = [None, letter(application="another")]
    found = overview([*letters, *others], "twinlens", limit=3)
    assert found.reasons == {"not_json": 5, "not_utf8": 5}
    assert found.foreign == 2
    newest = sorted(letters, key=lambda each: (each.refused_at_ms, each.partition, each.offset))[-3:]
    assert found.newest == newest
    found = overview(letters, "twinlens", reasons=["not_utf8"], limit=50)
    assert found.reasons.total() == 10
    assert {each.reason for each in found.newest} == {"not_utf8"}


def test_a_batch_tells_the_letters_apart() -> None:
    records = [
        record(0),
        record(1, reason=RefusalReason.NOT_UTF8),
        record(2, value=b"x" * 5_000, max_bytes=6_000),
        record(3, application="another"),
        record(0, partition=1),
    ]
    batch = batch_of(records, application="twinlens", reasons=["not_json"])
    assert [each.at for each in batch.letters] == ["0/0", "1/0"]
    assert batch.outcome == Outcome(
        replayed={"not_json": 2},
        passed_over={"not_utf8": 1},
        cut=1,
        foreign=1,  # type: ignore[arg-type]
    )
    assert batch.cursor == {TopicPartition("tweets.dlq", 0): 4, TopicPartition("tweets.dlq", 1): 1}
    assert [each.at for each in batch_of(records, application="twinlens").letters] == ["0/0", "0/1", "1/0"]


kinds = st.tuples(st.integers(0, 2), st.sampled_from(list(RefusalReason)[:3]), st.sampled_from(["twinlens", "other"]))


@given(st.lists(kinds, max_size=20), st.integers(1, 4))
def test_batches_one_after_the_other_choose_every_letter_once(kinds: list[Any], room: int) -> None:
    counts = [0, 0, 0]
    records = []
    for partition, reason, application in kinds:
        records.append(record(counts[partition], partition=partition, reason=reason, application=application))
        counts[partition] += 1
    reasons = [str(reason) for reason in list(RefusalReason)[:2]]
    whole = batch_of(records, application="twinlens", reasons=reasons)
    letters: list[DeadLetter] = []
    outcome = Outcome()
    cursor: dict[TopicPartition, int] = {}
    while cursor != whole.cursor:
        rest = [each for each in records if each.offset >= cursor.get(TopicPartition(each.topic, each.partition), 0)]
        batch = batch_of(rest, application="twinlens", reasons=reasons, room=room)
        assert len(batch.letters) <= room
        letters += batch.letters
        cursor |= batch.cursor
        outcome.add(batch.outcome)
    assert letters == whole.letters
    assert outcome == whole.outcome


def test_nothing_in_a_letter_steers_the_terminal() -> None:
    evil = "\x1b[2J\u202eevil\r"
    found = letter(key=evil.encode(), value=evil.encode(), own=[("h\x1b", evil.encode())])
    console = Console(markup=False, width=200)
    with console.capture() as captured:
        console.print(table_of([found]), facts_of(found))
    for shown in (captured.get(), readable_value(found)):
        assert "\\x1b[2J\\u202eevil\\r" in shown
        assert not {"\x1b", "\u202e", "\r"} & set(shown)
    assert printable("a\nb 👩\u200d🚀 é") == "a\\nb 👩\u200d🚀 é"
    assert readable(None) == "null"
    assert readable(b"\xff\x00") == "0xff00"


def test_a_value_is_shown_as_text_or_else_its_first_bytes() -> None:
    assert readable_value(letter(value="half a tweet\nß".encode())) == "half a tweet\nß"
    shown = readable_value(letter(value=b"\xff\xfe" + b"A" * 400)).splitlines()
    assert shown[0] == "00000000  ff fe 41 41 41 41 41 41 41 41 41 41 41 41 41 41  |..AAAAAAAAAAAAAA|"
    assert len(shown) == 17
    assert shown[-1].startswith("146 bytes more")
    cuts = [letter(value="ß".encode() * 3_000, own=[("h", header)], max_bytes=6_000) for header in (b"v", b"vv")]
    assert {len(cut.value or b"") % 2 for cut in cuts} == {0, 1}
    assert {*readable_value(cuts[0]), *readable_value(cuts[1])} == {"ß"}, "cut within a character is still text"


def test_a_key_that_is_no_text_is_base64_in_json() -> None:
    assert json_of(letter(key=b"k"))["key"] == "k"
    assert json_of(letter(key=None))["key"] is None
    assert json_of(letter(key=b"\xff"))["key_base64"] == "/w=="
    assert "nope" not in str(json_of(letter()))


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    with (console := Console(width=200)).capture() as captured:
        console.print(table_of([letter(now_ms=10**18), letter()]))
    assert str(10**18) in captured.get()
    assert "2026-01-01 00:00:00" in captured.get()
