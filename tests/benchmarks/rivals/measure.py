"""One contestant on one prefilled backlog: start it, wait until all is committed, check what it wrote, take its rate.

The rate is that of the output records by the broker's clock (both output topics have `LogAppendTime`), from the time
at which a warm-up share of the tweets was in both topics to that of the last one. It is the same for all contestants
that read from Kafka, whatever their clients do, and knows nothing of the start of processes and the loading of models.
A tweet of twinlens counts when the last one of its window is there: in a transaction nobody sees it earlier, and from
the middle of a window on there would be tweets that took no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from kafka.admin import NewTopic
from kafka.errors import RetriableError

from tests.benchmarks.rivals.job import Job, Source
from tests.benchmarks.system import CPUS, DEADLINE_S, backlog, tweets
from twinlens.broker.client import new_admin
from twinlens.broker.reading import read_topics
from twinlens.demo.embedded import die_with_parent
from twinlens.settings import DEMO_MODEL, Settings

ROOT = Path(__file__).parents[3]
PARTITIONS = 4
WARM_UP_SHARE = 0.25
END_S = 20.0
LABELS = list(json.loads(Path(DEMO_MODEL, "config.json").read_text())["id2label"].values())

Check = Callable[[], None]  #: raises when the contestant has died
Start = Callable[[Settings, Job], contextlib.AbstractContextManager[Check]]


class Batch(msgspec.Struct):
    """Of twinlens's records."""

    window: str


class Output(msgspec.Struct):
    """What every contestant's records have in common, and the window of twinlens's."""

    id: str
    source: Source
    logits: list[float] = []
    label: str = ""
    batch: Batch | None = None


decode = msgspec.json.Decoder(Output).decode


@dataclass
class Measured:
    """When each tweet was in both topics, and what was said of its text: the label on top of the logits, and the
    pipeline's."""

    times_ms: list[int] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)
    predicted: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tweets per second after the warm-up. Records of a batch have one time and count together."""
        done = sorted(self.times_ms)
        begin = done[int(len(done) * WARM_UP_SHARE)]
        assert done[-1] > begin, "the backlog is too small: all was written at once"
        return sum(at > begin for at in done) / ((done[-1] - begin) / 1000)

    def agreement(self, other: Measured) -> float:
        """Share of the answers on texts that both have seen that are the same, of both paths."""
        mine, theirs = (
            {(path, name): label for path in ("called", "predicted") for name, label in getattr(run, path).items()}
            for run in (self, other)
        )
        both = mine.keys() & theirs.keys()
        assert both, "no text in common"
        return sum(mine[key] == theirs[key] for key in both) / len(both)


def measure(
    start: Start, address: str, name: str, *, dtype: str, sections: dict[str, dict[str, Any]], count: int
) -> Measured:
    """Run a contestant over `count` tweets on topics of its own, which are gone afterwards."""
    tree: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": address, "session_timeout_ms": 3000},
        "topics": {"input": name},
        "raw": {"dtype": dtype},
        "predict": {"dtype": dtype},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    settings = Settings.load({"application": name, **tree})
    with _topics(settings):
        backlog(settings, tweets(count), PARTITIONS)
        with start(settings, _job(settings, dtype)) as check:
            _wait_until_committed(settings, count, check)
        return _measured(settings, count)


@contextlib.contextmanager
def program(module: str, job: Job, *, python: str = sys.executable, **variables: str) -> Iterator[Check]:
    """A loop of this package in a process of its own. It dies with the block, and with this process."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", **variables}
    command = [python, "-m", f"tests.benchmarks.rivals.{module}", msgspec.json.encode(job).decode()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )

        def check() -> None:
            if process.poll() is not None:
                log.seek(0)
                raise AssertionError(f"{module} ended with {process.returncode}: {log.read().decode()[-3000:]}")

        try:
            yield check
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _job(settings: Settings, dtype: str) -> Job:
    topics = settings.topics
    return Job(
        servers=settings.kafka.bootstrap_servers,
        group=settings.group_id,
        tweets=topics.input,
        logits=topics.logits,
        predictions=topics.predictions,
        model=DEMO_MODEL,
        dtype=dtype,
        threads=CPUS,
    )


@contextlib.contextmanager
def _topics(settings: Settings) -> Iterator[None]:
    """The two topics of results, with the broker's clock; `backlog` makes those that are missing."""
    topics = settings.topics
    config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(settings.kafka.max_request_bytes)}
    with contextlib.closing(new_admin(settings.kafka)) as admin:
        made = [NewTopic(name, PARTITIONS, 1, topic_configs=config) for name in (topics.logits, topics.predictions)]
        admin.create_topics(made)
        try:
            yield
        finally:
            admin.delete_topics([topics.input, *topics.outputs, topics.snapshots])


def _wait_until_committed(settings: Settings, count: int, check: Check) -> None:
    """Until the offsets of all tweets are committed. Asks rarely, as the asking costs the contestant time."""
    deadline = time.monotonic() + DEADLINE_S
    committed = 0
    with contextlib.closing(new_admin(settings.kafka)) as admin:
        while committed < count:
            check()
            assert time.monotonic() < deadline, f"{settings.application}: {committed} of {count} in {DEADLINE_S} s"
            time.sleep(1)
            with contextlib.suppress(RetriableError):
                offsets = admin.list_group_offsets({settings.group_id: None})[settings.group_id]
                committed = sum(max(at.offset, 0) for tp, at in offsets.items() if tp.topic == settings.topics.input)


def _measured(settings: Settings, count: int) -> Measured:
    topics = settings.topics
    found = Measured()
    times: dict[str, dict[Source, int]] = {topics.logits: {}, topics.predictions: {}}
    windows: dict[Source, str] = {}
    records: Counter[str] = Counter()
    for topic, record in read_topics(settings, times):
        output = decode(record.value)
        records[topic] += 1
        times[topic][output.source] = record.timestamp
        if output.batch is not None:
            windows[output.source] = output.batch.window
        if topic == topics.logits:
            found.called[output.id] = LABELS[output.logits.index(max(output.logits))]
        else:
            found.predicted[output.id] = output.label
    called, predicted = times.values()
    assert called.keys() == predicted.keys(), f"{settings.application}: the topics hold results of different tweets"
    assert [*records.values(), len(called)] == [count] * 3, f"{settings.application}: {records} records of {count}"
    found.times_ms = _seen([called, predicted], windows)
    return found


def _seen(times: Sequence[dict[Source, int]], windows: dict[Source, str]) -> list[int]:
    """Per tweet, when all results of it, or of its window, were there."""
    last: dict[Source | str, int] = {}
    for topic in times:
        for source, at_ms in topic.items():
            unit = windows.get(source, source)
            last[unit] = max(last.get(unit, 0), at_ms)
    return [last[windows.get(source, source)] for source in times[0]]
