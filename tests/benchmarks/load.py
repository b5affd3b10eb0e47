"""Offers load to a running application and measures the latency of each tweet, from a process on either side of it.

The latency of a tweet: from the moment it was due (its record's timestamp) to the moment when its prediction was in the
hands of a reader of committed records. So the waiting in Kafka counts, and so does the transaction.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.benchmarks import machine
from tests.benchmarks.machine import CpuTimes, CpuUse
from tests.benchmarks.producing import Floats, Plan, Sent, produce
from tests.benchmarks.reading import Arrival, read
from twinlens.settings import Settings

ANSWER_S = 60.0  #: for a process to answer, beyond what the plan takes
PERIOD_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """What became of a plan's tweets: columns with a row per tweet, in the order in which they were due."""

    start_s: float  #: wall clock
    due_s: Floats  #: after the start of the plan
    visible_s: Floats  #: the same
    windows: npt.NDArray[np.str_]
    late_s: Floats  #: how late the producer was
    cpu: CpuUse  #: while the plan was carried out, but for its beginning (`Load.offer`)

    @property
    def latency_ms(self) -> Floats:
        return (self.visible_s - self.due_s) * 1000


class Load:
    """Both processes. One plan is carried out after the other, with nothing under way in between."""

    def __init__(self, producer: Connection, reader: Connection, idle_s: float) -> None:
        self._producer, self._reader = producer, reader
        self._taken = 0
        self._idle_s = idle_s

    def offer(self, plan: Plan, warm_up_s: float = 0.0) -> Outcome:
        """Carry `plan` out and wait until the last of its tweets is through. `warm_up_s`: CPU time counts from then."""
        self._producer.send(plan)
        start = _answer(self._producer, ANSWER_S)
        time.sleep(max(0.0, start + warm_up_s - time.time()))
        first = CpuTimes.now()
        time.sleep(max(0.0, start + plan.seconds - time.time()))
        cpu = CpuUse.between(first, CpuTimes.now())
        sent: Sent = _answer(self._producer, ANSWER_S)
        assert not sent.refused, f"the broker refused {sent.refused} batches"
        arrivals = {arrival.id: arrival for arrival in self._arrivals(len(sent.late_s))}
        found = [arrivals[f"{plan.name}-{number}"] for number in range(len(sent.late_s))]
        return Outcome(
            start_s=start,
            due_s=plan.due(),
            visible_s=np.array([arrival.at_s - start for arrival in found]),
            windows=np.array([arrival.window for arrival in found]),
            late_s=sent.late_s,
            cpu=cpu,
        )

    def _arrivals(self, count: int) -> list[Arrival]:
        """The next `count` arrivals, as soon as they are there and nothing else."""
        deadline, seen, before = time.monotonic() + self._idle_s, -1, self._taken
        while (now := self._ask("count")) < before + count:
            if now > seen:
                seen, deadline = now, time.monotonic() + self._idle_s
            assert time.monotonic() < deadline, f"nothing came for {self._idle_s} s, {before + count - now} are missing"
            time.sleep(PERIOD_S)
        arrivals: list[Arrival] = self._ask("take")
        self._taken += len(arrivals)
        assert len(arrivals) == count, f"{len(arrivals)} predictions of {count} tweets"
        return arrivals

    def _ask(self, question: str) -> Any:
        self._reader.send(question)
        return _answer(self._reader, ANSWER_S)


@contextlib.contextmanager
def load(settings: Settings, partitions: int, idle_s: float = 120.0) -> Iterator[Load]:
    """Start both processes; they end with the block, or with this process. The topics must be there.

    `idle_s` is how long nothing may come while something is awaited.
    """
    with (
        _process(produce, "producer", settings.kafka, settings.topics.input, partitions) as producer,
        _process(read, "reader", settings.kafka, settings.topics.predictions, partitions) as reader,
    ):
        yield Load(producer, reader, idle_s)


@contextlib.contextmanager
def _process(body: Callable[..., None], name: str, *arguments: Any) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy Ray's threads' locks
    ours, theirs = context.Pipe()
    process = context.Process(target=body, args=(theirs, *arguments), name=name, daemon=True)
    process.start()
    theirs.close()  # else the end of the process would not end what is read from it
    assert process.pid is not None
    machine.NAMES[process.pid] = name
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()


def _answer(pipe: Connection, timeout_s: float) -> Any:
    assert pipe.poll(timeout_s), f"no answer within {timeout_s} s"
    return pipe.recv()
