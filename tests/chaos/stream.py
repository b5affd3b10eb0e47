"""The tweets that go in, each with what must become of it, and how far the application has committed."""

from __future__ import annotations

import bisect
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kafka import TopicPartition
from kafka.errors import KafkaError

from tests.support.replicas import lines
from twinlens.broker.client import new_admin, new_producer
from twinlens.errors import RefusalReason
from twinlens.settings import Settings
from twinlens.threads import WatchedThread

Coordinates = tuple[int, int]  #: partition and offset on the input topic

MAX_TEXT_CHARS = 5_000  #: of the application under test
SAMPLE_S = 0.25
TICK_S = 0.02
DELIVERY_S = 600

POISON: dict[RefusalReason, bytes | None] = {
    RefusalReason.TOMBSTONE: None,
    RefusalReason.EMPTY_VALUE: b"",
    RefusalReason.NOT_UTF8: b'{"text": "\xff\xfe"}',
    RefusalReason.NOT_JSON: b'{"text": "half of it',
    RefusalReason.NOT_AN_OBJECT: b'["text"]',
    RefusalReason.NO_TEXT_FIELD: b'{"words": "none"}',
    RefusalReason.TEXT_NOT_A_STRING: b'{"text": 7}',
    RefusalReason.LONE_SURROGATE: rb'{"text": "\ud800"}',
    RefusalReason.TEXT_TOO_LONG: b'{"text": "%s"}' % (b"long " * MAX_TEXT_CHARS),
}


class Stream:
    """A thread that sends tweets at a rate by an idempotent `acks=all` producer, and poison when asked to."""

    def __init__(self, settings: Settings, rate: float, least: int) -> None:
        self.acknowledged: dict[Coordinates, RefusalReason | None] = {}  #: a reason for what must be refused
        self.failed: list[Exception] = []
        self.tweets = 0  #: sent so far, poison not counted
        self._topic = settings.topics.input
        self._rate = rate
        self._least = least
        self._injected: queue.SimpleQueue[RefusalReason] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._producer = new_producer(settings.kafka, acks="all", linger_ms=5, delivery_timeout_ms=DELIVERY_S * 1000)
        self._thread = WatchedThread("stream", self._run)
        self._thread.start()

    def inject(self, reasons: Sequence[RefusalReason]) -> None:
        """Mix records that cannot be read as tweets into what is sent from now on."""
        for reason in reasons:
            self._injected.put(reason)

    def finish(self) -> None:
        """Send what is missing of `least`, as fast as it goes, and wait until everything is acknowledged."""
        self._ending.set()
        ended = self._thread.join(DELIVERY_S)
        self._producer.close(timeout=30)
        self._thread.check()
        assert ended, "the stream does not end"

    def ends(self) -> dict[int, int]:
        """By partition, the offset after the last acknowledged record."""
        ends: dict[int, int] = {}
        for partition, offset in list(self.acknowledged):
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return ends

    def _run(self) -> None:
        start, tweets = time.monotonic(), itertools.cycle(lines())
        while not self._ending.is_set():
            while self.tweets < self._rate * (time.monotonic() - start):
                self._send(next(tweets), None)
            time.sleep(TICK_S)
        while self.tweets < self._least:
            self._send(next(tweets), None)
        self._producer.flush(timeout=DELIVERY_S)

    def _send(self, value: bytes | None, reason: RefusalReason | None) -> None:
        future = self._producer.send(self._topic, value, key=str(self.tweets).encode())
        self.tweets += reason is None
        future.add_callback(lambda made: self.acknowledged.__setitem__((made.partition, made.offset), reason))
        future.add_errback(self.failed.append)
        if reason is None and not self._injected.empty():
            poison = self._injected.get()
            self._send(POISON[poison], poison)


class Progress:
    """A thread that samples the group's committed offsets, by way of the direct listener."""

    def __init__(self, settings: Settings, start_s: float) -> None:
        self._settings = settings
        self._start_s = start_s
        self._times: list[float] = []
        self._samples: list[dict[int, int]] = []
        self._ending = threading.Event()
        self._thread = WatchedThread("progress", self._run)
        self._thread.start()

    def committed(self) -> dict[int, int]:
        """The newest sample: committed offset by partition."""
        return self._samples[-1] if self._samples else {}

    def recovery_s(self, since_s: float) -> tuple[float | None, float | None]:
        """Seconds from `since_s` (after the start) to the first new commit anywhere, and to one on every partition."""
        first = bisect.bisect_right(self._times, since_s)
        before = self._samples[first - 1] if first else {}

        def until(grown: Callable[..., bool]) -> float | None:
            for at_s, sample in itertools.islice(zip(self._times, self._samples, strict=False), first, None):
                if sample and grown(offset > before.get(partition, 0) for partition, offset in sample.items()):
                    return at_s - since_s
            return None

        return until(any), until(all)

    def standstill_s(self, since_s: float, until_s: float) -> float:
        """See `standstill_s`."""
        return standstill_s(self._times, self._samples, since_s, until_s)

    def finish(self) -> None:
        self._ending.set()
        assert self._thread.join(60), "the sampling does not end"
        self._thread.check()

    def _run(self) -> None:
        admin = new_admin(self._settings.kafka)
        group, topic = self._settings.group_id, self._settings.topics.input
        try:
            while not self._ending.wait(SAMPLE_S):
                try:
                    found = admin.list_group_offsets({group: None})[group]
                except KafkaError:  # the coordinator is down or has moved: this client would ask it for ever
                    admin.close()
                    admin = new_admin(self._settings.kafka)
                    continue
                at_s = time.monotonic() - self._start_s
                self._samples.append({tp.partition: o.offset for tp, o in found.items() if _of(tp, topic)})
                self._times.append(at_s)
        finally:
            admin.close()


def standstill_s(times: Sequence[float], samples: Sequence[Mapping[int, int]], since_s: float, until_s: float) -> float:
    """The longest time that any partition went without a new commit, among those that began before `until_s` and ended
    after `since_s`; only what comes after `since_s` counts.
    """
    longest, last, before = 0.0, dict[int, float](), dict[int, int]()
    for at_s, sample in zip(times, samples, strict=False):
        for partition, offset in sample.items():
            if offset != before.get(partition):
                began = max(last.get(partition, at_s), since_s)
                if began < until_s and at_s > since_s:
                    longest = max(longest, at_s - began)
                before[partition], last[partition] = offset, at_s
    return longest


def _of(partition: TopicPartition, topic: str) -> bool:
    return bool(partition.topic == topic)


def poison(rng: random.Random) -> list[RefusalReason]:
    """A burst of mixed kinds, never more than a hundred."""
    return rng.choices(list(POISON), k=rng.randint(20, 100))
