"""A replica's own lag, which autoscaling goes by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from tests.support.replicas import committed, lines, produce, running_replica, wait_until
from twinlens.autoscaling import ReplicaStats
from twinlens.broker.client import new_consumer
from twinlens.broker.lag import AssignedLag, LagMeter
from twinlens.settings import Settings


def feed(settings: Settings, count: int) -> int:
    return produce(settings, [(str(n).encode(), line, []) for n, line in enumerate(lines(count))])


def test_a_replica_tells_its_lag_and_how_fast_it_is_once_it_is_behind(new_settings: Callable[..., Settings]) -> None:
    settings = new_settings(batching={"max_window_items": 16})
    with running_replica(settings) as replica:
        seen: list[ReplicaStats] = []

        def look() -> ReplicaStats:
            replica.check_health()
            seen.append(replica.autoscaling_stats())
            return seen[-1]

        wait_until(lambda: look().measured_partitions == 2, "both partitions are measured")
        assert (seen[-1].partitions, seen[-1].lag_records, seen[-1].service_records_per_s) == (2, 0, 0)
        sent = feed(settings, 1)
        wait_until(lambda: committed(settings, replica) == sent, "the first record")
        assert look().service_records_per_s == 0  # one record at a time is no measure
        sent += feed(settings, 400)
        sent += feed(settings, 400)
        wait_until(lambda: look().lag_records == 0 and committed(settings, replica) == sent, "the burst is drained")
    assert max(stats.lag_records for stats in seen) > 16
    assert max(stats.arrival_records_per_s for stats in seen) > 0
    assert seen[-1].service_records_per_s > 0
    assert replica.autoscaling_stats() == ReplicaStats(service_records_per_s=seen[-1].service_records_per_s)


def test_a_consumer_measures_what_is_ahead_of_it(
    new_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings()
    consumer = new_consumer(settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest")
    with contextlib.closing(consumer):
        meter = LagMeter(consumer, settings.topics.input)
        assert meter.measure(0.0) == AssignedLag(0, 0, 0, 0.0)  # none is assigned
        consumer.assign([TopicPartition(settings.topics.input, number) for number in range(2)])
        first = meter.measure(1.0)
        sent = feed(settings, 30)
        second = meter.measure(2.0)
        assert first == AssignedLag(2, 0, 0, 0.0)  # growth takes two readings
        assert second is not None
        assert (second.partitions, second.measured_partitions) == (2, 2)
        assert 0 < second.unread_records <= sent  # the embedded broker's ends may be a batch behind
        assert second.arrival_records_per_s == second.unread_records

        def away(*_: Any, **__: Any) -> None:
            raise KafkaTimeoutError

        monkeypatch.setattr(consumer, "end_offsets", away)
        assert meter.measure(3.0) is None
