"""The whole system under measurement: a broker, the application on a Ray of its own, tweets, and what came out."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from ray import serve

from tests.benchmarks.machine import CPUS
from tests.support.apache_kafka import apache_kafka, kafka_home
from tests.support.serving import run, start_http
from twinlens import app, records
from twinlens.broker import topics
from twinlens.broker.feed import feed, new_feed_producer
from twinlens.broker.reading import read_topics
from twinlens.demo.application import TWEETS
from twinlens.serving.cluster import local_cluster
from twinlens.settings import Settings

Broker = Callable[[], contextlib.AbstractContextManager[str]]

DEADLINE_S = 600.0


@contextlib.contextmanager
def real_kafka() -> Iterator[str]:
    """A broker from `KAFKA_HOME`; the benchmark is skipped where there is none."""
    home = kafka_home()
    if home is None:
        pytest.skip("no KAFKA_HOME with java")
    with apache_kafka(home) as cluster:
        yield cluster.bootstrap()


def tweets(count: int) -> list[bytes]:
    """`count` lines: the demonstration tweets, over and over, in a random order that is always the same: in the
    file they get longer towards its end, and those who get fewer tweets would have it easier.
    """
    lines = TWEETS.read_bytes().splitlines()
    random.Random(0).shuffle(lines)
    return list(itertools.islice(itertools.cycle(lines), count))


def backlog(settings: Settings, lines: Iterable[bytes], partitions: int = 4) -> None:
    """Make the topics and put `lines` onto the input, before anybody reads it."""
    topics.create(settings, partitions, 1)
    with contextlib.closing(new_feed_producer(settings.kafka)) as producer:
        feed(producer, settings.topics.input, lines, rate=0, key_field="id", go_on=lambda _: True)


@contextlib.contextmanager
def running(
    settings: Settings, *, cpus: int = CPUS, prepare: Callable[[], None] | None = None, **replica_options: Any
) -> Iterator[Any]:
    """The application on a Ray with `cpus` logical CPUs; yields its handle.

    `prepare` (a module's function) is called in every replica's process before twinlens is: it may replace parts.
    """
    options = {"ray_actor_options": {"num_cpus": cpus}, **replica_options}
    with local_cluster(cpus):
        start_http()
        application = app.application(settings, **options)
        if prepare is not None:
            application = _prepared(settings, prepare, options)
        yield run(application, settings.application)


def published(handle: Any) -> int:
    """Tweets that the monitor has counted."""
    return int(json.loads(handle.view.remote().result())["summary"]["windows"]["all"]["published"])


def wait_for(handle: Any, count: int) -> None:
    """Wait until the monitor has counted `count` tweets."""
    deadline = time.monotonic() + DEADLINE_S
    while published(handle) < count:
        assert time.monotonic() < deadline, f"the application did not get through {count} tweets"
        time.sleep(0.5)


def rate(settings: Settings, warm_up: int) -> float:
    """Tweets per second by the times in the comparisons, from the end of the first `warm_up` tweets to the last."""
    comparisons = (
        records.decode_comparison(raw.value) for _, raw in read_topics(settings, [settings.topics.comparisons])
    )
    done = sorted((record.published_at_ms, record.published) for record in comparisons)
    total = sum(count for _, count in done)
    seen = 0
    for at_ms, count in done:
        seen += count
        if seen >= warm_up:
            return (total - seen) / ((done[-1][0] - at_ms) / 1000)
    raise AssertionError(f"only {seen} tweets were published")


def _prepared(settings: Settings, prepare: Callable[[], None], options: dict[str, Any]) -> serve.Application:
    original: Any = app.ReplicaDeployment.func_or_class  # type: ignore[attr-defined]

    class Prepared(original):  # type: ignore[misc]
        def __init__(self, settings: Settings) -> None:
            prepare()
            super().__init__(settings)

    replicas = app.ReplicaDeployment.options(func_or_class=Prepared, **options)  # type: ignore[attr-defined]
    without = settings.without_secrets()
    return app.MonitorDeployment.bind(without, replicas.bind(without))  # type: ignore[attr-defined, no-any-return]
