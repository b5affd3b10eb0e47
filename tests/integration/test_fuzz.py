"""Thousands of mutated records through one running replica: each comes out once, as results or as a dead letter.

hypothesis draws a kind and a seed for each record (`tests.support.mutations`). Assertions name the record; nothing is
shrunk, since the replica has moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.producer import producer_batch

from tests.conftest import ModelFolder
from tests.support.mutations import MUTATORS, Sent, expected, make
from tests.support.replicas import committed, running_replica, wait_until
from twinlens import records
from twinlens.audit import audit
from twinlens.broker import topics
from twinlens.broker.client import new_consumer, new_producer
from twinlens.errors import RefusalReason
from twinlens.replica.replica import Replica
from twinlens.settings import Settings

RECORDS = 100  #: per example
PARTITIONS = 2
MAX_TEXT_CHARS = 5_000
#: Kinds that hit the border between tweets and dead letters more often than others.
OFTEN = ("flipped", "duplicated", "spliced", "odd_text", "odd_json", "odd_json")

Coordinates = tuple[int, int]  #: partition and offset on the input topic


class Rig:
    """A replica, a producer for its input and a reader of its outputs, for all examples."""

    def __init__(self, settings: Settings, replica: Replica, producer: KafkaProducer, reader: KafkaConsumer) -> None:
        self.settings = settings
        self.replica = replica
        self.sent = 0
        self.accepted = 0
        self._producer = producer
        self._reader = reader

    def send(self, batch: list[Sent]) -> list[Coordinates]:
        """Where each record stands. Goes past the client's `send`, which takes neither a null as a header's value nor
        a record without key and value.
        """
        futures = []
        for number, record in enumerate(batch):
            partition = TopicPartition(self.settings.topics.input, number % PARTITIONS)
            future, *_ = self._producer._accumulator.append(partition, None, record.key, record.value, record.headers)
            futures.append((partition.partition, future))
        self._producer.flush(timeout=30)
        self.sent += len(batch)
        return [(partition, future.get(timeout=1).offset) for partition, future in futures]

    def outputs(self, count: int) -> dict[str, list[Any]]:
        """The next `count` records of the outputs, by topic."""
        found: dict[str, list[Any]] = {topic: [] for topic in topics_read(self.settings)}

        def read() -> bool:
            self.replica.check_health()
            for partition, polled in self._reader.poll(50).items():
                found[partition.topic].extend(polled)
            return sum(map(len, found.values())) >= count

        wait_until(read, f"{count} outputs")
        return found


def topics_read(settings: Settings) -> tuple[str, str, str]:
    return (settings.topics.logits, settings.topics.predictions, settings.topics.dlq)


@pytest.fixture(scope="module")
def rig(broker: str, model_folder: ModelFolder) -> Iterator[Rig]:
    settings = Settings.load(
        {
            "application": "fuzz",
            "topics": {"input": "fuzz"},
            "kafka": {"bootstrap_servers": broker, "session_timeout_ms": 2000},
            "raw": {"model": str(model_folder("bert", "three"))},
            "intake": {
                "max_text_chars": MAX_TEXT_CHARS,
                "max_consecutive_refusals": None,
                "max_refused_share": None,
            },
        }
    )
    topics.create(settings, PARTITIONS, 1)
    producer = new_producer(settings.kafka)
    producer.partitions_for(settings.topics.input)
    reader = new_consumer(settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest")
    reader.assign([TopicPartition(topic, number) for topic in topics_read(settings) for number in range(PARTITIONS)])
    try:
        with running_replica(settings) as replica, pytest.MonkeyPatch.context() as patch:
            # The client can write a null as a header's value, but not count its bytes.
            patch.setattr(producer_batch, "len", lambda of: 0 if of is None else len(of), raising=False)
            yield Rig(settings, replica, producer, reader)
    finally:
        producer.close(timeout=5)
        reader.close()


@pytest.mark.parametrize(
    "examples", [pytest.param(10, id="a thousand"), pytest.param(101, id="ten thousand", marks=pytest.mark.slow)]
)
def test_every_record_comes_out_once_as_results_or_as_a_dead_letter(rig: Rig, examples: int) -> None:
    before = rig.sent
    kinds = st.sampled_from([*MUTATORS, *OFTEN])

    @given(st.lists(st.tuples(kinds, st.integers(0, 2**32 - 1)), min_size=RECORDS, max_size=RECORDS))
    @limits(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def run(drawn: list[tuple[str, int]]) -> None:
        check(rig, [make(kind, seed) for kind, seed in drawn])

    run()
    assert rig.sent - before >= examples * RECORDS
    assert rig.accepted > rig.sent / 5
    report = audit(rig.settings)
    assert report.clean
    assert (report.consumed, report.published) == (rig.sent, rig.accepted)
    assert report.dead_lettered == rig.sent - rig.accepted


def check(rig: Rig, batch: list[Sent]) -> None:
    sent = dict(zip(rig.send(batch), batch, strict=True))
    accepted = {at: answer.id for at, record in sent.items() if (answer := of(record)).accepted}
    rig.accepted += len(accepted)
    found = rig.outputs(len(sent) + len(accepted))
    wait_until(lambda: committed(rig.settings, rig.replica) == rig.sent, "everything is committed")
    names = {at: f"fuzz/{at[0]}/{at[1]}" if name is None else name for at, name in accepted.items()}
    assert results(found[rig.settings.topics.logits], records.decode_logits, sent) == names
    assert results(found[rig.settings.topics.predictions], records.decode_prediction, sent) == names
    assert letters(found[rig.settings.topics.dlq], sent) == sent.keys() - accepted.keys()


def of(record: Sent) -> Any:
    return expected(record.value, MAX_TEXT_CHARS)


def results(found: list[Any], decode: Callable[[bytes], Any], sent: dict[Coordinates, Sent]) -> dict[Coordinates, str]:
    """Ids on one of the two output topics; all else is as it was sent."""
    come: dict[Coordinates, str] = {}
    for raw in found:
        result = decode(raw.value)
        at = (result.source.partition, result.source.offset)
        assert of(sent[at]).accepted, f"should have been refused: {sent[at]}"
        assert at not in come, f"twice: {sent[at]}"
        assert (raw.partition, raw.key, raw.headers) == (at[0], sent[at].key, readable(sent[at]))
        assert result.error is None, f"a path raised: {sent[at]}"
        come[at] = result.id
    return come


def letters(found: list[Any], sent: dict[Coordinates, Sent]) -> set[Coordinates]:
    """Coordinates on the dead-letter topic; the records are as they were sent, but for headers named `twinlens.*`."""
    come: set[Coordinates] = set()
    for raw in found:
        headers = dict(raw.headers)  # ours come last
        at = (int(headers["twinlens.source.partition"]), int(headers["twinlens.source.offset"]))
        assert not of(sent[at]).accepted, f"should have been accepted: {sent[at]}"
        assert at not in come, f"twice: {sent[at]}"
        own = [(name, held) for name, held in readable(sent[at]) if not name.startswith("twinlens.")]
        # Kafka takes no record with neither key nor value from a producer.
        value = b"" if sent[at].key is None and sent[at].value is None else sent[at].value
        assert (raw.partition, raw.key, raw.value, raw.headers[: len(own)]) == (at[0], sent[at].key, value, own)
        added = [name for name, _ in raw.headers[len(own) :]]
        assert all(name.startswith("twinlens.") for name in added)
        assert len(set(added)) == len(added)
        assert "twinlens.cut_from_bytes" not in added
        assert RefusalReason(headers["twinlens.reason"].decode())
        assert headers["twinlens.detail"]
        assert headers["twinlens.application"] == b"fuzz"
        come.add(at)
    return come


def readable(record: Sent) -> list[tuple[str, bytes]]:
    """The client that publishes cannot send a null as a header's value: it becomes an empty one."""
    return [(name, value or b"") for name, value in record.headers]
