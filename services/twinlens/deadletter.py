"""Dead letters: records that could not be read as a tweet, kept with the reason in headers named `twinlens.*`.

`replica.outputs` writes them, `broker.dlq` reads them, `broker.replay` puts them back. Pure.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twinlens.records import SourceCoordinates
from twinlens.window.item import Headers

PREFIX = "twinlens."  #: of the headers that are not the refused record's own
REPLAYED_FROM = "twinlens.replayed_from"  #: on a replayed record: `<dead-letter topic>/<partition>/<offset>`


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One record of the dead-letter topic. Key, value and headers are those of the refused record."""

    topic: str
    partition: int
    offset: int
    reason: str  #: a `RefusalReason`, or one that only another version of twinlens knows
    detail: str
    application: str
    source: SourceCoordinates
    source_timestamp_ms: int
    refused_at_ms: int
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)
    cut_from_bytes: int | None = None  #: the value's original length, if it was cut to fit Kafka's limit
    replayed_from: str | None = None  #: the letter of the round before, where the refused record was a replayed one

    @property
    def at(self) -> str:
        """Partition and offset as the commands write them."""
        return f"{self.partition}/{self.offset}"


def own_headers(headers: Headers) -> Headers:
    """The headers that the record had before twinlens refused or replayed it."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def letter_of(record: Any) -> DeadLetter | None:
    """A ConsumerRecord as a letter; None if its headers are not those of a letter.

    If a header is there twice, the last one counts: twinlens added it. Other programs may have put any bytes there.
    """
    headers = [(name, value or b"") for name, value in record.headers]  # a null value is possible
    added = {name: value for name, value in headers if name.startswith(PREFIX)}
    try:
        said = {name.removeprefix(PREFIX): value.decode(errors="replace") for name, value in added.items()}
        return DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=said["reason"],
            detail=said["detail"],
            application=said["application"],
            source=SourceCoordinates(said["source.topic"], int(said["source.partition"]), int(said["source.offset"])),
            source_timestamp_ms=int(said["source.timestamp_ms"]),
            refused_at_ms=int(said["refused_at_ms"]),
            key=record.key,
            value=record.value,
            headers=own_headers(headers),
            cut_from_bytes=int(said["cut_from_bytes"]) if "cut_from_bytes" in said else None,
            replayed_from=said.get("replayed_from"),
        )
    except (KeyError, ValueError):
        return None


@dataclass(slots=True, kw_only=True)
class Overview:
    """What is on a dead-letter topic, as one application sees it."""

    reasons: Counter[str] = field(default_factory=Counter)  #: all its letters, by reason
    foreign: int = 0  #: records that are not its letters
    newest: list[DeadLetter] = field(default_factory=list)  #: the newest of the chosen reasons, newest last


def overview(
    letters: Iterable[DeadLetter | None], application: str, reasons: Collection[str] = (), limit: int = 50
) -> Overview:
    """Count all letters of `application`, and keep the `limit` newest whose reason is in `reasons` (none: any)."""
    found = Overview()

    def chosen() -> Iterator[DeadLetter]:
        for letter in letters:
            if letter is None or letter.application != application:
                found.foreign += 1
                continue
            found.reasons[letter.reason] += 1
            if not reasons or letter.reason in reasons:
                yield letter

    newest = heapq.nlargest(limit, chosen(), key=lambda each: (each.refused_at_ms, each.partition, each.offset))
    found.newest = newest[::-1]
    return found
