"""Kafka for the loops that use kafka-python. The producer has the settings of twinlens's."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, KafkaProducer

from tests.benchmarks.rivals.job import Job, Logits, Prediction, Source

POLL_RECORDS = 512  #: as many as a window of twinlens has


class Tweet(NamedTuple):
    id: str
    text: str
    key: bytes | None
    source: Source


def new_consumer(job: Job) -> KafkaConsumer:
    return KafkaConsumer(
        job.tweets,
        bootstrap_servers=job.servers,
        group_id=job.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=POLL_RECORDS,
    )


def new_producer(job: Job) -> KafkaProducer:
    return KafkaProducer(
        bootstrap_servers=job.servers,
        value_serializer=msgspec.json.encode,
        acks="all",
        linger_ms=5,
        batch_size=256 * 1024,
        compression_type="lz4",
    )


def poll(consumer: KafkaConsumer, timeout_ms: int) -> list[Tweet]:
    """What has come, of all partitions."""
    return [_tweet(record) for records in consumer.poll(timeout_ms).values() for record in records]


def send(producer: KafkaProducer, job: Job, tweet: Tweet, logits: list[float], answer: dict[str, Any]) -> None:
    """Hand both results of a tweet to the producer."""
    producer.send(job.logits, Logits(tweet.id, tweet.source, logits), key=tweet.key)
    producer.send(job.predictions, Prediction(tweet.id, tweet.source, answer["label"], answer["score"]), key=tweet.key)


def _tweet(record: Any) -> Tweet:
    body = msgspec.json.decode(record.value)
    return Tweet(body["id"], body["text"], record.key, Source(record.topic, record.partition, record.offset))
