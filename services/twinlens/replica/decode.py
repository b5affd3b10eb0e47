"""The second stage: a record to a tweet, or to a refusal with its reason. Pure.

| value                                   | answer                                                   |
|-----------------------------------------|----------------------------------------------------------|
| null (a tombstone)                      | refused: `tombstone`                                     |
| no bytes                                | refused: `empty_value`                                   |
| not UTF-8                               | refused: `not_utf8`                                      |
| JSON: malformed / not an object         | refused: `not_json` / `not_an_object`                    |
| JSON: nested hundreds of levels deep    | refused: `not_json`                                      |
| JSON: no text field / null              | refused: `no_text_field`                                 |
| JSON: text is a number, list, ...       | refused: `text_not_a_string`                             |
| a lone surrogate (`"\\ud800"`)          | refused: `lone_surrogate`, no tokenizer can take it      |
| more than `max_text_chars` characters   | refused: `text_too_long`                                 |
| JSON: id is neither a string nor a number | a tweet: its id is `fallback_id`                       |
| an empty text, control characters, `[SEP]` | a tweet: both paths get it unchanged                  |
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from twinlens.errors import RefusalReason, RefuseRecord, without_frames
from twinlens.fields import field_at
from twinlens.settings import IntakeSettings
from twinlens.text import Text
from twinlens.window.item import Item

OBJECTS_BYTES = 1_000  #: per record in hand: its Item, id, lists and so on
TOKEN_BYTES = 44  #: per token in hand: a Python int, and its places in the lists of ids and type ids

Tokenize = Callable[[Sequence[Text]], None]  #: fills in the tokens of each text


class Tweet(NamedTuple):
    """What is read from a record: its id, as text, and its text."""

    id: str
    text: str


_decode_json = msgspec.json.Decoder().decode


def decode(value: bytes | None, settings: IntakeSettings, fallback_id: str) -> Tweet:
    """The tweet in a record's value. `fallback_id` is its id when the record has none.

    Raises RefuseRecord with the reason.
    """
    if value is None:
        raise RefuseRecord(RefusalReason.TOMBSTONE, "the record has a null value")
    if not value:
        raise RefuseRecord(RefusalReason.EMPTY_VALUE, "the record has no bytes")
    tweet = (
        _decode_text(value, fallback_id) if settings.format == "text" else _decode_object(value, settings, fallback_id)
    )
    if len(tweet.text) > settings.max_text_chars:
        raise RefuseRecord(
            RefusalReason.TEXT_TOO_LONG,
            f"{len(tweet.text)} characters, intake.max_text_chars is {settings.max_text_chars}",
        )
    return tweet


def _decode_text(value: bytes, fallback_id: str) -> Tweet:
    try:
        return Tweet(fallback_id, value.decode())
    except UnicodeDecodeError as error:
        raise RefuseRecord(RefusalReason.NOT_UTF8, f"invalid byte at position {error.start}") from None


def _decode_object(value: bytes, settings: IntakeSettings, fallback_id: str) -> Tweet:
    try:
        body = _decode_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = _decode_slowly(value)
    except RecursionError:
        raise RefuseRecord(RefusalReason.NOT_JSON, "the value is nested too deeply") from None
    if not isinstance(body, dict):
        raise RefuseRecord(RefusalReason.NOT_AN_OBJECT, f"the JSON value is a {type(body).__name__}, not an object")
    text = field_at(body, settings.text_field)
    if text is None:
        raise RefuseRecord(RefusalReason.NO_TEXT_FIELD, f"there is no field {settings.text_field!r}")
    if not isinstance(text, str):
        raise RefuseRecord(
            RefusalReason.TEXT_NOT_A_STRING, f"the field {settings.text_field!r} is a {type(text).__name__}"
        )
    name = field_at(body, settings.id_field)
    named = isinstance(name, str | int | float) and not isinstance(name, bool)
    return Tweet(str(name) if named else fallback_id, text)


def _decode_slowly(value: bytes) -> Any:
    """The fast decoder refused: find out why, by the table above. Raises RefuseRecord."""
    try:
        body = json.loads(value.decode())
    except UnicodeDecodeError as error:
        raise RefuseRecord(RefusalReason.NOT_UTF8, f"invalid byte at position {error.start}") from None
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise RefuseRecord(RefusalReason.NOT_JSON, str(error)) from None
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefuseRecord(RefusalReason.LONE_SURROGATE, "the JSON contains half of a surrogate pair") from None
    except RecursionError as error:
        raise RefuseRecord(RefusalReason.NOT_JSON, str(error)) from None
    # What remains is what Python's decoder accepts and the standard does not, such as NaN.
    raise RefuseRecord(RefusalReason.NOT_JSON, "the value is not standard JSON") from None


class Decoder:
    """Turns ConsumerRecords of one partition into items, in order. For the thread that `tokenize` belongs to."""

    def __init__(self, settings: IntakeSettings, tokenize: Tokenize) -> None:
        self._settings = settings
        self._tokenize = tokenize

    def __call__(self, records: Sequence[Any]) -> list[Item]:
        items = [self._item(record) for record in records]
        self._tokenize([item.text for item in items if item.refusal is None])
        for item in items:
            item.size_bytes = _size_bytes(item)
        return items

    def _item(self, record: Any) -> Item:
        value: bytes | None = record.value
        item = Item(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp,
            key=record.key,
            # kafka-python sends no null header value, so it goes out empty.
            headers=[(name, value or b"") for name, value in record.headers],
            size_bytes=0,  # known when it is decoded and tokenized
        )
        try:
            tweet = decode(value, self._settings, f"{record.topic}/{record.partition}/{record.offset}")
            item.id, item.text.content = tweet
        except RefuseRecord as refusal:
            item.refusal, item.value = without_frames(refusal), value
        return item


def _size_bytes(item: Item) -> int:
    """Memory that the record takes until it is published. An estimate, more often too high than too low."""
    headers = sum(len(name) + len(value) for name, value in item.headers)
    held = len(item.value or b"") + len(item.key or b"") + headers + sys.getsizeof(item.text.content)
    return OBJECTS_BYTES + held + TOKEN_BYTES * item.text.token_count
