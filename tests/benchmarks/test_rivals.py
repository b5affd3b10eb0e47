"""twinlens against what one would write without it: the same model, tweets, broker and threads, both paths for every
tweet, results on two topics and offsets committed. Printed; asserted is only that everybody wrote everything.

| variable | what it does |
|---|---|
| `TWINLENS_BENCH_DTYPE` | `float32` (default) or `bfloat16` |
| `TWINLENS_BENCH_REPETITIONS` | 3 by default |
| `TWINLENS_BENCH_ONLY` | only these contestants: names in `CONTESTANTS` or `limit`, by commas |
| `TWINLENS_BENCH_SECONDS` | how long each measurement is to take after its warm-up, 12 by default |
| `TWINLENS_BENCH_REPORT` | folder for `rivals.md`, `rivals.json` and `rivals.svg` |
| `TWINLENS_BENCH_QUIX_PYTHON` | a Python with Quix Streams, torch and transformers; `.venv/quix` by default |
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from tests.benchmarks.rivals.fixed_batches import fixed_batches
from tests.benchmarks.rivals.job import Job
from tests.benchmarks.rivals.measure import WARM_UP_SHARE, Check, Measured, Start, measure, program
from tests.benchmarks.rivals.report import Report, Row
from tests.benchmarks.system import CPUS, real_kafka, running
from tests.benchmarks.test_throughput import limit
from twinlens.demo.application import TWEETS
from twinlens.demo.embedded import embedded_broker
from twinlens.serving.cluster import local_cluster
from twinlens.settings import Settings

DTYPE = os.environ.get("TWINLENS_BENCH_DTYPE", "float32")
REPETITIONS = int(os.environ.get("TWINLENS_BENCH_REPETITIONS", "3"))
SECONDS = float(os.environ.get("TWINLENS_BENCH_SECONDS", "12"))
QUIX = os.environ.get("TWINLENS_BENCH_QUIX_PYTHON", str(Path(sys.prefix, "quix", "bin", "python")))
REFERENCE_TWEETS = 256
LEAST_TWEETS = 1_200  #: more than two windows of twinlens
#: In bfloat16 the shape of a batch moves logits by up to a hundredth, and the closest of them change places.
AGREEMENT = {"float32": 0.999, "bfloat16": 0.97}


def twinlens(prepare: Callable[[], None] | None = None) -> Start:
    """The application on a Ray of its own, one replica with all CPUs."""

    @contextlib.contextmanager
    def start(settings: Settings, _job: Job) -> Iterator[Check]:
        with running(settings, prepare=prepare):
            yield lambda: None

    return start


def loop(module: str, python: str = sys.executable) -> Start:
    """A program of `tests.benchmarks.rivals`."""
    return lambda _settings, job: program(module, job, python=python)


@contextlib.contextmanager
def serve_batch(_settings: Settings, job: Job) -> Iterator[Check]:
    """The program, on a Ray of its own."""
    with local_cluster(CPUS):
        serve.start(proxy_location="Disabled")  # else this process asks the Serve of the Ray before
        address = ray.get_runtime_context().gcs_address
        with program("serve_batch", job, RAY_ADDRESS=address) as check:
            yield check


@dataclass(frozen=True)
class Contestant:
    """`guess` is its first rate per CPU, for how many tweets it gets; afterwards it is what was measured."""

    title: str
    start: Start
    guess: float
    delivery: str = "at least once"
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    embedded: bool = False  #: on an embedded broker of its own, which forgets all at its end


AT_LEAST_ONCE = {"output": {"delivery": "at_least_once"}}
SAMPLED = {"predict": {"mode": "sampled", "sample_share": 0.05}}
CONTESTANTS = {
    "exactly-once": Contestant("twinlens", twinlens(), 200, "exactly once"),
    "at-least-once": Contestant("twinlens, at least once", twinlens(), 200, sections=AT_LEAST_ONCE),
    "sampled": Contestant("twinlens, sampled 5 %", twinlens(), 350, "exactly once", SAMPLED),
    "sampled-at-least-once": Contestant(
        "twinlens, sampled 5 %, at least once", twinlens(), 350, sections=SAMPLED | AT_LEAST_ONCE
    ),
    "fixed-batches": Contestant("twinlens with fixed batches of 32", twinlens(fixed_batches), 130, "exactly once"),
    "serve-batch": Contestant("Ray Serve, @serve.batch of 32", serve_batch, 120),
    "batches": Contestant("loop, batches of 32", loop("batches"), 130),
    "one-by-one": Contestant("loop, one by one", loop("one_by_one"), 60),
    "quix": Contestant("Quix Streams", loop("quix", QUIX), 60),
}
CONTESTANTS |= {
    f"embedded-{name}": replace(CONTESTANTS[name], title=f"{CONTESTANTS[name].title}, embedded broker", embedded=True)
    for name in ("exactly-once", "at-least-once", "sampled", "sampled-at-least-once")
}


def selected() -> list[str]:
    """Names of those who take part, `limit` among them."""
    every = ["limit", *CONTESTANTS]
    only = [name for name in os.environ.get("TWINLENS_BENCH_ONLY", "").split(",") if name]
    assert set(only) <= set(every), f"TWINLENS_BENCH_ONLY may name {', '.join(every)}"
    if not Path(QUIX).exists():
        assert "quix" not in only, f"no {QUIX} (make venv-bench)"
        every.remove("quix")
        print(f"without Quix Streams: no {QUIX} (make venv-bench)")
    return [name for name in every if name in only] if only else every


def run(name: str, address: str, topic: str, count: int) -> Measured:
    contestant = CONTESTANTS[name]
    with embedded_broker() if contestant.embedded else contextlib.nullcontext(address) as broker:
        return measure(contestant.start, broker, topic, dtype=DTYPE, sections=contestant.sections, count=count)


def repeat(row: Row, address: str, repetition: int, reference: Measured) -> None:
    """One more rate for a contestant, with its answers checked."""
    if row.name == "limit":
        row.rates.append(limit(DTYPE))
        row.tweets = len(TWEETS.read_bytes().splitlines())
        return
    expected = row.median if row.rates else CONTESTANTS[row.name].guess * CPUS
    row.tweets = max(LEAST_TWEETS, int(expected * SECONDS / (1 - WARM_UP_SHARE)))
    measured = run(row.name, address, f"{row.name}-{repetition}", row.tweets)
    agreement = measured.agreement(reference)
    assert agreement >= AGREEMENT[DTYPE], f"{row.name} gives the answers of twinlens to {agreement:.2%} only"
    row.rates.append(measured.rate)


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_rivals() -> None:
    names = selected()
    titles = {"limit": ("reference: both paths in turn, sorted batches of 64, no Kafka", "")}
    titles |= {name: (contestant.title, contestant.delivery) for name, contestant in CONTESTANTS.items()}
    report = Report([Row(name, *titles[name]) for name in names], DTYPE)
    folder = os.environ.get("TWINLENS_BENCH_REPORT")
    with real_kafka() as address:
        reference = run("exactly-once", address, "reference", REFERENCE_TWEETS)  # also to warm up broker and files
        for repetition in range(REPETITIONS):
            first = repetition * len(names) // REPETITIONS
            for row in report.rows[first:] + report.rows[:first]:
                repeat(row, address, repetition, reference)
                print(f"{repetition + 1}/{REPETITIONS} {row.title}: {row.rates[-1]:,.0f} tweets/s", flush=True)
            if folder:
                report.write(Path(folder))
    print(f"\n{report.markdown()}")
