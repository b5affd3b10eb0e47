"""What must hold in the end, checked against what the stream has sent: every record once, where it belongs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kafka import TopicPartition

from tests.chaos.stream import Coordinates
from twinlens.broker.client import new_consumer
from twinlens.errors import RefusalReason
from twinlens.records import decode_logits, decode_prediction
from twinlens.settings import Settings

SHOWN = 20


class Copy(NamedTuple):
    """One published record: on which output, from which window (it begins with the replica), or for which reason."""

    topic: str
    by: str


def problems(settings: Settings, sent: Mapping[Coordinates, RefusalReason | None]) -> list[str]:
    """One line per record that is not where it belongs exactly once; at most `SHOWN` of each kind."""
    read = {
        (record.partition, record.offset) for _, record in _read(settings, [settings.topics.input], "read_committed")
    }
    found = [f"{len(read - sent.keys())} records on the input were not acknowledged"] * bool(read - sent.keys())
    found += [f"{len(sent.keys() - read)} acknowledged records are not on the input"] * bool(sent.keys() - read)
    published = copies(settings)
    wrong = [
        f"partition {at[0]} offset {at[1]}, due {due}, is {there}"
        for at, due, there in ((at, _due(settings, sent[at]), sorted(published.get(at, []))) for at in sorted(sent))
        if there and [_kind(copy) for copy in there] != due
    ]
    lost = sorted(sent.keys() - published.keys())
    hidden = copies(settings, "read_uncommitted") if lost else {}
    missing = [f"partition {at[0]} offset {at[1]} is nowhere; aborted: {sorted(hidden.get(at, []))}" for at in lost]
    unknown = [f"{at} is there and was never sent: {published[at]}" for at in sorted(published.keys() - sent.keys())]
    for kind, lines in (("wrong", wrong), ("missing", missing), ("unknown", unknown)):
        found += [f"{len(lines)} {kind}", *lines[:SHOWN]] if lines else []
    return found


def copies(settings: Settings, isolation_level: str = "read_committed") -> dict[Coordinates, list[Copy]]:
    """Every record of logits, predictions and dead letters by the coordinates of its source."""
    topics = settings.topics
    found: dict[Coordinates, list[Copy]] = defaultdict(list)
    for topic, record in _read(settings, (topics.logits, topics.predictions, topics.dlq), isolation_level):
        where = f"offset {record.offset}" if isolation_level == "read_uncommitted" else ""
        if topic == topics.dlq:
            headers = {name: value.decode() for name, value in record.headers if name.startswith("twinlens.")}
            at = int(headers["twinlens.source.partition"]), int(headers["twinlens.source.offset"])
            found[at].append(Copy(topic, headers["twinlens.reason"] + where))
        else:
            output = (decode_logits if topic == topics.logits else decode_prediction)(record.value)
            at = output.source.partition, output.source.offset
            found[at].append(Copy(topic, ("" if output.batch is None else output.batch.window) + where))
    return found


def _read(settings: Settings, topics: Sequence[str], isolation_level: str) -> Iterator[tuple[str, Any]]:
    """All records of `topics` up to the end that such a reader sees."""
    consumer = new_consumer(settings.kafka, isolation_level=isolation_level, auto_offset_reset="earliest")
    try:
        partitions = [TopicPartition(topic, p) for topic in topics for p in consumer.partitions_for_topic(topic)]
        ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, records in consumer.poll(500).items():
                for record in records:
                    yield partition.topic, record
    finally:
        consumer.close()


def _due(settings: Settings, reason: RefusalReason | None) -> list[tuple[str, str]]:
    if reason is not None:
        return [(settings.topics.dlq, reason.value)]
    return [(settings.topics.logits, "a window"), (settings.topics.predictions, "a window")]


def _kind(copy: Copy) -> tuple[str, str]:
    return (copy.topic, copy.by if copy.topic.endswith(".dlq") else "a window")
