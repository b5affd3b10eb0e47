"""The first stage: ConsumerRecords to items. Decodes, refuses, and tokenizes for the raw path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from twinlens.errors import RefuseRecord, without_frames
from twinlens.inference.decode import decode
from twinlens.inference.raw import RawTokenizer
from twinlens.settings import Settings
from twinlens.window import Item

OBJECTS_BYTES = 1_000  #: of a record in hand: its Item, id, lists and the like
TOKEN_BYTES = 44  #: of a token in hand: a Python int, and its places in the lists of ids and of type ids


class Decoder:
    """Used by the intake thread only, since its tokenizer is."""

    def __init__(self, settings: Settings, tokenizer: RawTokenizer) -> None:
        self._settings = settings.intake
        self._tokenizer = tokenizer

    def __call__(self, records: Sequence[Any]) -> list[Item]:
        items = [self._item(record) for record in records]
        self._tokenizer.tokenize([item for item in items if item.refusal is None])
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
            # The client sends no null header value.
            headers=[(name, value or b"") for name, value in record.headers],
            size_bytes=0,  # once it is known what becomes of it
        )
        try:
            tweet = decode(value, self._settings, f"{record.topic}/{record.partition}/{record.offset}")
            item.id, item.text = tweet
        except RefuseRecord as refusal:
            item.refusal, item.value = without_frames(refusal), value
        return item


def _size_bytes(item: Item) -> int:
    """Memory that the record takes until it is published: about, and more often too much than too little."""
    headers = sum(len(name) + len(value) for name, value in item.headers)
    held = len(item.value or b"") + len(item.key or b"") + headers + sys.getsizeof(item.text)
    return OBJECTS_BYTES + held + TOKEN_BYTES * item.token_count
