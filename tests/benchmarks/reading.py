"""The other end: a process that notes when each prediction becomes visible to a reader of committed records."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
from kafka import TopicPartition

from twinlens.broker.client import new_consumer
from twinlens.settings.kafka import KafkaSettings

POLL_MS = 100
MAX_POLL_RECORDS = 200  #: all records of a poll get the time at its end, so it must not unpack too many


class Arrival(NamedTuple):
    """A prediction that became visible."""

    id: str
    at_s: float  #: wall clock
    window: str


class _Batch(msgspec.Struct):
    window: str


class _Prediction(msgspec.Struct):
    id: str
    batch: _Batch


def read(pipe: Connection, kafka: KafkaSettings, topic: str, partitions: int) -> None:
    """The process: answers `count` with the number of arrivals, and `take` with the arrivals since the last one.

    What was read is decoded when it is asked for, so that this costs nothing while something is measured.
    """
    consumer = new_consumer(
        kafka, isolation_level="read_committed", auto_offset_reset="earliest", max_poll_records=MAX_POLL_RECORDS
    )
    consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
    consumer.seek_to_beginning()
    read: list[tuple[float, list[Any]]] = []
    count = 0
    try:
        while True:
            for records in consumer.poll(POLL_MS).values():
                read.append((time.time(), records))
                count += len(records)
            if pipe.poll():
                match pipe.recv():
                    case "count":
                        pipe.send(count)
                    case "take":
                        pipe.send(_decoded(read))
                        read.clear()
                    case None:
                        return
    except EOFError:  # the benchmark died
        pass
    finally:
        consumer.close()


def _decoded(read: list[tuple[float, list[Any]]]) -> list[Arrival]:
    decode = msgspec.json.Decoder(_Prediction).decode
    arrivals = []
    for at_s, records in read:
        for record in records:
            prediction = decode(record.value)
            arrivals.append(Arrival(prediction.id, at_s, prediction.batch.window))
    return arrivals
