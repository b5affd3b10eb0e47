"""The monitoring actor's body: follows `comparisons` and `divergences`, folds, and answers. One per application.

Its state is nothing but the fold of `monitor.divergence`, so it may be killed at any time: the next one reads the topic
again and has the same counts. Replicas write to Kafka and never wait for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from twinlens.broker.client import new_consumer
from twinlens.broker.lag import LagProbe
from twinlens.errors import AskUser
from twinlens.monitor.divergence import State
from twinlens.monitor.statistics import RateDetector
from twinlens.monitor.summary import Summary, summary
from twinlens.records import DivergenceRecord, decode_comparison, decode_divergence
from twinlens.settings import Settings
from twinlens.threads import WatchedThread

log = structlog.get_logger(__name__)

POLL_MS = 200
LAG_PERIOD_S = 1.0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the API, the terminal and the page show."""

    summary: Summary
    lag: dict[int, int] | None  #: records behind, per partition of the input topic; None while it is not known
    recent: list[DivergenceRecord]  #: the newest diverging tweets, oldest first
    caught_up: bool  #: whether the topics were read to their ends at least once
    unreadable: int  #: records of the two topics that are no records of twinlens


class Monitor:
    """Owns the state and the thread that feeds it. `view` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        monitor = settings.monitor
        detector = RateDetector(baseline_rate=monitor.alert_rate, run_length_tweets=monitor.alert_run_length_tweets)
        self._state = State(application=settings.application, detector=detector)
        self._recent: deque[DivergenceRecord] = deque(maxlen=monitor.recent_divergences)
        self._lag: dict[int, int] | None = None
        self._caught_up = False
        self._unreadable = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [WatchedThread("monitor", self._follow), WatchedThread("lag", self._watch_lag)]

    def start(self) -> None:
        """Start following the topics."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(5.0)

    def check_health(self) -> None:
        """Raises ReplaceReplica when a thread died."""
        for thread in self._threads:
            thread.check()

    def view(self, now_ms: int) -> View:
        """Everything there is to show at `now_ms`."""
        with self._lock:
            return View(
                summary=summary(self._state, now_ms),
                lag=self._lag,
                recent=list(self._recent),
                caught_up=self._caught_up,
                unreadable=self._unreadable,
            )

    def _follow(self) -> None:
        """The monitor thread: every record of the two topics, from the beginning."""
        consumer = new_consumer(self._settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest")
        try:
            ends = self._assign(consumer)
            while not self._stopping.is_set():
                polled = consumer.poll(POLL_MS)
                with self._lock:
                    for partition, records in polled.items():
                        for record in records:
                            self._take(partition.topic, record)
                if not self._caught_up and not polled:
                    self._caught_up = all(consumer.position(partition) >= end for partition, end in ends.items())
        finally:
            consumer.close()

    def _assign(self, consumer: KafkaConsumer) -> dict[TopicPartition, int]:
        """Returns where the topics end now: what the state holds after reading this far is not news but history."""
        topics = self._settings.topics
        comparisons, divergences = (
            [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
            for topic in (topics.comparisons, topics.divergences)
        )
        consumer.assign([*comparisons, *divergences])
        for partition in comparisons:
            consumer.seek_to_beginning(partition)
        # Of the diverging tweets only the newest are shown. Markers take offsets too, hence twice as far back.
        ends, starts = consumer.end_offsets(divergences), consumer.beginning_offsets(divergences)
        back = 2 * self._settings.monitor.recent_divergences
        for partition in divergences:
            consumer.seek(partition, max(starts[partition], ends[partition] - back))
        return {**ends, **consumer.end_offsets(comparisons)}

    def _take(self, topic: str, record: Any) -> None:
        try:
            if topic == self._settings.topics.comparisons:
                comparison = decode_comparison(record.value)
                if comparison.application == self._settings.application:
                    self._state.fold(comparison)
            else:
                divergence = decode_divergence(record.value)
                if divergence.application == self._settings.application:
                    self._recent.append(divergence)
        except (msgspec.MsgspecError, TypeError) as error:
            # Somebody else's record; counting it keeps the fold defined without hiding it.
            self._unreadable += 1
            log.warning("not a record of twinlens", topic=topic, partition=record.partition, offset=record.offset,
                        error=str(error))  # fmt: skip

    def _watch_lag(self) -> None:
        """The lag thread: on clients of its own, since a broker that is away must not hold up the fold."""
        probe: LagProbe | None = None
        try:
            while not self._stopping.wait(LAG_PERIOD_S):
                try:
                    probe = probe or LagProbe(self._settings)
                    self._lag = probe.lag()
                except (KafkaError, AskUser) as error:
                    self._lag = None
                    log.warning("lag is not known", error=repr(error))
                    if probe is not None:  # kafka-python's admin client goes on asking a coordinator that has moved
                        probe.close()
                        probe = None
        finally:
            if probe is not None:
                probe.close()


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
