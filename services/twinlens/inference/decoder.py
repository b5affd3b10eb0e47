"""The first stage: ConsumerRecords to items. Decodes, refuses, and tokenizes for the raw path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinlens.errors import RefuseRecord
from twinlens.inference.decode import decode
from twinlens.inference.raw import RawTokenizer
from twinlens.settings import Settings
from twinlens.window import Item


class Decoder:
    """Used by the intake thread only, since its tokenizer is."""

    def __init__(self, settings: Settings, tokenizer: RawTokenizer) -> None:
        self._settings = settings.intake
        self._tokenizer = tokenizer

    def __call__(self, records: Sequence[Any]) -> list[Item]:
        items = [self._item(record) for record in records]
        self._tokenizer.tokenize([item for item in items if item.refusal is None])
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
            size_bytes=len(value or b""),
        )
        try:
            tweet = decode(value, self._settings, f"{record.topic}/{record.partition}/{record.offset}")
            item.id, item.text = tweet
        except RefuseRecord as refusal:
            item.refusal, item.value = refusal, value
        return item
