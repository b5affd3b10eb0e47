"""Replicas that die in the middle of a commit, on a real Kafka: nothing lost, nothing twice, and soon going on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ModelFolder
from tests.support.replicas import assigned, committed, lines, produce, running_replica, wait_until
from twinlens.audit import Report, audit
from twinlens.broker import topics
from twinlens.broker.publisher import TransactionalPublisher
from twinlens.broker.recovery import Recovery
from twinlens.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SESSION_S = 3.0
TRANSACTION_S = 60.0  #: far beyond the deadline of these tests: waiting for the broker's own abort would fail them
DEADLINE_S = 40.0


def new_args(address: str, model: Any, delivery: str = "exactly_once") -> dict[str, Any]:
    name = f"recovery-{uuid.uuid4().hex[:8]}"
    args: dict[str, Any] = {
        "application": name,
        "topics": {"input": name},
        "kafka": {
            "bootstrap_servers": address,
            "session_timeout_ms": int(SESSION_S * 1000),
            "transaction_timeout_ms": int(TRANSACTION_S * 1000),
        },
        "raw": {"model": str(model)},
        "batching": {"max_window_items": 50},
        "output": {"delivery": delivery},
    }
    topics.create(Settings.load(args), 4, 1)
    return args


@contextlib.contextmanager
def doomed(args: dict[str, Any], way: str, point: str, number: signal.Signals) -> Iterator[subprocess.Popen[str]]:
    """A replica that will send itself `number` at `point` of its first commit; it has partitions already."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.doomed", json.dumps(args), way, point, number.name],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != "ready":
            pass
        assert line, "it died too early"
        yield process
        process.terminate()
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.communicate()


def die_and_recover(args: dict[str, Any], way: str, point: str) -> tuple[Report, float]:
    """One replica dies in its first commit, another one does all the rest; the audit, and seconds without a commit."""
    settings = Settings.load(args)
    with doomed(args, way, point, signal.SIGKILL) as process:
        total = produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(400))])
        process.wait(DEADLINE_S)
        died = time.monotonic()
        before = committed(settings)
        with running_replica(settings, "successor") as successor:
            wait_until(lambda: committed(settings, successor) > before, "the first commit", DEADLINE_S)
            pause_s = time.monotonic() - died
            wait_until(lambda: committed(settings, successor) >= total, "all committed", DEADLINE_S)
        return audit(settings), pause_s


@pytest.mark.parametrize("point", ["after_sends", "after_offsets", "after_commit"])
def test_a_replica_killed_in_its_commit_costs_no_tweet_and_brings_none_twice(
    kafka: str, model_folder: ModelFolder, point: str
) -> None:
    report, pause_s = die_and_recover(new_args(kafka, model_folder()), "transaction", point)
    assert report.clean
    assert (report.published, report.monitor_tweets) == (400, 400)
    print(f"{point}: first commit {pause_s:.1f} s after the death, session timeout {SESSION_S} s")


@pytest.mark.parametrize(
    ("way", "delivery", "point"),
    [("plain_sends", "at_least_once", "after_sends"), ("offsets_outside", "exactly_once", "after_commit")],
)
def test_the_check_would_see_sends_or_offsets_outside_the_transaction(
    kafka: str, model_folder: ModelFolder, way: str, delivery: str, point: str
) -> None:
    """The same death with a publisher that does it wrong: the audit must find the window that came out twice."""
    report, _ = die_and_recover(new_args(kafka, model_folder(), delivery), way, point)
    assert not report.clean
    assert report.duplicate > 0


def test_a_stopped_replica_that_comes_back_in_its_commit_is_fenced(kafka: str, model_folder: ModelFolder) -> None:
    args = new_args(kafka, model_folder())
    settings = Settings.load(args)
    with doomed(args, "transaction", "after_offsets", signal.SIGSTOP) as zombie:
        total = produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(400))])
        with running_replica(settings, "successor") as successor:
            wait_until(lambda: committed(settings, successor) >= total, "the successor does all of it", DEADLINE_S)
            zombie.send_signal(signal.SIGCONT)
            more = total + produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(400))])
            wait_until(lambda: committed(settings, successor) >= more, "both together", DEADLINE_S)
    report = audit(settings)
    assert report.clean
    assert (report.published, report.monitor_tweets) == (800, 800)


def test_a_living_replica_is_never_fenced(kafka: str, model_folder: ModelFolder) -> None:
    """Two replicas at work while somebody looks for members that died all the time: no window is aborted."""
    settings = Settings.load(new_args(kafka, model_folder()))
    with running_replica(settings, "first") as first, running_replica(settings, "second") as second:
        wait_until(lambda: bool(assigned(first) and assigned(second)), "both have partitions")
        total = produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(2000))])
        publisher = first.parts.publisher
        assert isinstance(publisher, TransactionalPublisher)
        watcher = Recovery(settings.kafka, settings.group_id, publisher.transactional_id)
        fenced = []
        while committed(settings, first) < total:
            fenced += watcher.abort_left_open()
            second.check_health()
    assert fenced == []
    comparisons = audit(settings)
    assert comparisons.clean
    assert comparisons.published == total
