"""The offered load: a process that sends tweets when they are due, whatever becomes of those before (open loop).

Arrivals are Poisson. A record's timestamp is the moment when it was due, not the one when it was sent: a producer that
comes late would otherwise hide just that waiting which it is to show ("coordinated omission"). How late it was is told.
"""

from __future__ import annotations

import gc
import json
import random
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from tests.benchmarks.wire import Wire
from twinlens.demo.application import TWEETS
from twinlens.settings.kafka import KafkaSettings

TICK_S = 0.004  #: it sleeps at least this long, and then sends what became due
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
        generator = np.random.default_rng(self.seed)
        start, arrivals = 0.0, []
        for seconds, rate in self.segments:
            count = generator.poisson(rate * seconds)
            arrivals.append(start + np.sort(generator.uniform(0, seconds, count)))
            start += seconds
        return np.concatenate(arrivals)


@dataclass(frozen=True)
class Sent:
    """What became of a plan."""

    late_s: Floats  #: how long after it was due each tweet was sent
    refused: int  #: batches that the broker did not store


def produce(pipe: Connection, kafka: KafkaSettings, topic: str, partitions: int) -> None:
    """The process: for each `Plan` from the pipe, the wall clock at its start, and at its end a `Sent`."""
    texts = [json.loads(line)["text"] for line in TWEETS.read_text().splitlines()]
    random.Random(0).shuffle(texts)  # the file has short texts first
    wire = Wire(kafka.bootstrap_servers, topic)
    try:
        while (plan := pipe.recv()) is not None:
            pipe.send(_follow(plan, pipe, wire, partitions, texts))
    except EOFError:  # the benchmark died
        pass
    finally:
        wire.close()


def _follow(plan: Plan, pipe: Connection, wire: Wire, partitions: int, texts: list[str]) -> Sent:
    """Carry a plan out: a batch per tick, for one partition after the other."""
    due = plan.due().tolist()
    values = [
        json.dumps({"id": f"{plan.name}-{number}", "text": texts[number % len(texts)]}).encode()
        for number in range(len(due))
    ]
    late_s = np.zeros(len(due))
    gc.collect()
    gc.freeze()  # a collection of all that was made above would be a pause in the middle of the load
    start = time.time() + HEAD_START_S
    pipe.send(start)
    number = ticks = 0
    while number < len(due):
        if (ahead_s := start + due[number] - time.time()) > 0:
            time.sleep(max(ahead_s, TICK_S))
        now = time.time()
        batch = []
        while number < len(due) and start + due[number] <= now:
            batch.append((int((start + due[number]) * 1000), values[number]))
            late_s[number] = now - start - due[number]
            number += 1
        if batch:
            wire.send(ticks % partitions, batch)
            ticks += 1
    refused = wire.refused()
    gc.unfreeze()
    return Sent(late_s, refused)
