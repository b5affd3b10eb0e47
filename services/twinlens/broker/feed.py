"""Sends lines of text to a topic at a given rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError

from twinlens.broker.client import new_producer
from twinlens.errors import AskUser
from twinlens.fields import field_at
from twinlens.settings.kafka import KafkaSettings

TICK_S = 0.02  #: if a rate is given, lines are sent in bursts this far apart


def new_feed_producer(kafka: KafkaSettings) -> KafkaProducer:
    """A producer that trades a few milliseconds of latency for large batches."""
    return new_producer(kafka, linger_ms=5, batch_size=64 * 1024, compression_type="lz4")


def feed(
    producer: KafkaProducer,
    topic: str,
    lines: Iterable[bytes],
    *,
    rate: float,
    key_field: str | None,
    go_on: Callable[[int], bool],
) -> int:
    """Send `lines`, each unchanged as one record, until they end or `go_on(sent)` is false. Returns how many were sent.

    `rate` is in records per second, 0 for no limit. `go_on` is called before every record. The key is the value of
    `key_field` if the line is a JSON object with it. Raises AskUser if a record is too large or not acknowledged.
    """
    sent = 0
    failed: list[Exception] = []
    start = time.monotonic()
    for line in lines:
        if not go_on(sent):
            break
        if rate > 0 and (ahead := sent / rate - (time.monotonic() - start)) > TICK_S:
            time.sleep(ahead)
        try:
            producer.send(topic, line, key=key_of(line, key_field)).add_errback(failed.append)
        except MessageSizeTooLargeError:
            raise AskUser(f"Line {sent + 1} has {len(line):,} bytes; raise kafka.max_request_bytes.") from None
        sent += 1
    producer.flush(timeout=60)
    if failed:
        raise AskUser(f"{len(failed)} of {sent} records were not acknowledged by Kafka ({failed[0]!r}).")
    return sent


def key_of(line: bytes, field: str | None) -> bytes | None:
    """The value of `field` (dotted paths allowed) as text; None if the line does not have it."""
    if field is None:
        return None
    try:
        body = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    value = field_at(body, field) if isinstance(body, dict) else None
    return None if value is None else str(value).encode()


def read_lines(source: str) -> Iterator[bytes]:
    """The lines of a file, or of standard input for `-`, without line ends and without empty lines."""
    if source == "-":
        stream = sys.stdin.buffer
    else:
        try:
            stream = Path(source).open("rb")  # noqa: SIM115 - closed when the generator ends
        except OSError as error:
            raise AskUser(f"The file {source} cannot be read: {error.strerror}.") from None
    return _lines(stream)


def _lines(stream: Iterator[bytes]) -> Iterator[bytes]:
    for line in stream:
        if stripped := line.rstrip(b"\r\n"):
            yield stripped
