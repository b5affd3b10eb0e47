"""A record as it came in (`Item`) and as it goes out (`OutgoingRecord`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from twinlens.errors import RefuseRecord
from twinlens.text import Text

Headers = list[tuple[str, bytes]]
Partition = tuple[str, int]  #: topic and partition number


@dataclass(slots=True, eq=False)
class Item:
    """One input record: a tweet with its tokens, or a refused record with its original bytes."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)
    size_bytes: int  #: memory that it takes while it is in hand
    id: str = ""
    text: Text = field(default_factory=Text, repr=False)
    value: bytes | None = field(default=None, repr=False)  #: kept for refused records only
    refusal: RefuseRecord | None = None

    @property
    def source(self) -> Partition:
        return (self.topic, self.partition)


class OutgoingRecord(NamedTuple):
    """One record to publish. At least one of key and value is not None."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
