"""The offered load: a process that sends tweets when they are due, whatever becomes of those before (open loop).

Arrivals are Poisson. A record's timestamp is the moment when it was due, not the one when it was sent: a producer that
comes late would otherwise hide just that waiting which it is to show ("coordinated omission"). How late it was is told.
"""

from __future__ import annotations

import gc
import json
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from twinlens.broker.client import close_producer, new_producer
from twinlens.cli.demo import TWEETS
from twinlens.kafka_settings import KafkaSettings

TICK_S = 0.002  #: it sleeps at least this long, and then sends what became due
LINGER_MS = 1
HEAD_START_S = 0.2  #: between the plan and its first tweet

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What to send: one segment after the other, each of (seconds, tweets per second). Ids are `<name>-<number>`."""

    name: str
    segments: tuple[tuple[float, float], ...]
    seed: int = 0

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.segments)

    def due(self) -> Floats:
        """Seconds after the start at which each tweet is due."""
        random = np.random.default_rng(self.seed)
        start, arrivals = 0.0, []
        for seconds, rate in self.segments:
            count = random.poisson(rate * seconds)
            arrivals.append(start + np.sort(random.uniform(0, seconds, count)))
            start += seconds
        return np.concatenate(arrivals)


@dataclass(frozen=True)
class Sent:
    """What became of a plan."""

    late_s: Floats  #: how long after it was due each tweet was handed to the client
    not_acknowledged: int


def produce(pipe: Connection, kafka: KafkaSettings, topic: str, partitions: int) -> None:
    """The process: for each `Plan` from the pipe, the wall clock at its start, and at its end a `Sent`."""
    texts = [json.loads(line)["text"] for line in TWEETS.read_text().splitlines()]
    producer = new_producer(kafka, linger_ms=LINGER_MS)
    producer.partitions_for(topic)  # asks for metadata now; sending must not wait for them
    try:
        while (plan := pipe.recv()) is not None:
            pipe.send(_follow(plan, pipe, producer, topic, partitions, texts))
    except EOFError:  # the benchmark died
        pass
    finally:
        close_producer(producer, timeout_s=5)


def _follow(plan: Plan, pipe: Connection, producer: Any, topic: str, partitions: int, texts: list[str]) -> Sent:
    due = plan.due()
    values = [
        json.dumps({"id": f"{plan.name}-{number}", "text": texts[number % len(texts)]}).encode()
        for number in range(len(due))
    ]
    places = np.random.default_rng(plan.seed).integers(partitions, size=len(due)).tolist()
    late_s, futures = np.zeros(len(due)), []
    gc.collect()
    gc.freeze()  # a collection of all that was made above would be a pause in the middle of the load
    start = time.time() + HEAD_START_S
    pipe.send(start)
    for number, after_s in enumerate(due.tolist()):
        while (ahead_s := start + after_s - time.time()) > 0:
            time.sleep(max(ahead_s, TICK_S))
        late_s[number] = -ahead_s
        timestamp_ms = int((start + after_s) * 1000)
        futures.append(producer.send(topic, values[number], partition=places[number], timestamp_ms=timestamp_ms))
    producer.flush(timeout=60)
    gc.unfreeze()
    return Sent(late_s, sum(future.failed() for future in futures))
