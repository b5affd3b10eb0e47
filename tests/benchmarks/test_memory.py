"""Resident memory of a replica while it works through a backlog. Printed, never asserted."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ModelFolder
from tests.support.models import demo_tweets
from twinlens import records
from twinlens.audit import committed_offsets
from twinlens.broker import topics
from twinlens.broker.feed import feed, new_feed_producer
from twinlens.broker.reading import read_topics
from twinlens.demo.application import TWEETS
from twinlens.demo.embedded import embedded_broker
from twinlens.settings import Settings

PARTITIONS = 4
ORDINARY = 200_000
LARGE = 300
LARGE_CHARS = 1_000_000
DEADLINE_S = 550.0


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """A real Kafka; where there is none, the embedded broker."""
    try:
        yield request.getfixturevalue("kafka")
    except pytest.skip.Exception:
        with embedded_broker() as embedded:
            yield embedded


def ordinary() -> Iterator[bytes]:
    return itertools.islice(itertools.cycle(TWEETS.read_bytes().splitlines()), ORDINARY)


def large() -> Iterator[bytes]:
    """JSON with a text of a million characters, made of tweets in a random order."""
    order = random.Random(0)
    texts = list(demo_tweets())
    for number in range(LARGE):
        order.shuffle(texts)
        text = " ".join(itertools.chain.from_iterable(itertools.repeat(texts, 6)))[:LARGE_CHARS]
        yield json.dumps({"id": str(number), "text": text.ljust(LARGE_CHARS, "x")}, ensure_ascii=False).encode()


def status(process: int) -> dict[str, int]:
    """VmRSS and VmHWM in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}


@contextlib.contextmanager
def replica(settings: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A replica with its model loaded that waits for a line before it starts."""
    program = [sys.executable, str(Path(__file__).with_name("replica.py")), json.dumps(settings)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loaded\n"
            yield process
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def measure(name: str, address: str, model: Path, lines: Iterable[bytes], sections: dict[str, Any]) -> str:
    """A row of the table."""
    tree = {
        "application": name,
        "topics": {"input": name},
        "kafka": {"bootstrap_servers": address},
        "raw": {"model": str(model)},
        **sections,
    }
    settings = Settings.load(tree)
    topics.create(settings, PARTITIONS, 1)
    producer = new_feed_producer(settings.kafka)
    count = feed(producer, name, lines, rate=0, key_field="id", go_on=lambda _: True)
    producer.close()
    with replica(tree) as process:
        assert process.stdin is not None
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM starts again: loading does not count
        at_start = status(process.pid)["VmRSS"]
        start = time.monotonic()
        process.stdin.write("start\n")
        process.stdin.flush()
        done, after = 0, {}
        while done < count:
            assert process.poll() is None, "the replica died"
            assert time.monotonic() - start < DEADLINE_S, f"{done} of {count} in {DEADLINE_S} s"
            time.sleep(0.2)
            done = sum(committed_offsets(settings).values())
            for percent in (10, 50):
                if done >= count * percent / 100:
                    after.setdefault(percent, status(process.pid)["VmRSS"])
        seconds = time.monotonic() - start
        found = status(process.pid)
    windows = [records.decode_comparison(raw.value) for _, raw in read_topics(settings, [settings.topics.comparisons])]
    sizes: dict[str, int] = {}
    for window in windows:
        sizes[window.window] = sizes.get(window.window, 0) + window.tally.tweets + sum(window.refused.values())
    assert sum(sizes.values()) == count
    largest = max(sizes.values())
    mebibytes = [at_start, after[10], after[50], found["VmHWM"], found["VmRSS"]]
    return f"| {name} | {' | '.join(map(str, mebibytes))} | {seconds:.0f} | {largest} |"


@pytest.mark.benchmark
@pytest.mark.timeout(2400)
def test_memory(address: str, model_folder: ModelFolder) -> None:
    model = model_folder("bert", "three")
    print("\nMiB of resident memory of a replica with a tiny model")
    print("| backlog | model loaded | after 10 % | after 50 % | peak | end | seconds | largest window |")
    print("|---|---|---|---|---|---|---|---|")
    print(measure("ordinary", address, model, ordinary(), {}), flush=True)
    unlimited = {"max_consecutive_refusals": None, "max_refused_share": None}
    print(measure("large-refused", address, model, large(), {"intake": unlimited}), flush=True)
    accepted = {"intake": {"max_text_chars": 2 * LARGE_CHARS}}
    print(measure("large-accepted", address, model, large(), accepted), flush=True)
