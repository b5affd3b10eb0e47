"""What more replicas bring, with a model of fixed cost that takes no CPU: the system's own overhead. Printed.

TWINLENS_BENCH_STUB_MS_PER_TEXT (3) is what a text costs in each of the two paths, TWINLENS_BENCH_STUB_MS_PER_BATCH (2)
what a pass costs: choose them so that the machine is not busy all the time in the last row. TWINLENS_BENCH_REPLICAS
(1,2,4,8) are the numbers of replicas, TWINLENS_BENCH_STUB_SECONDS (20) how long the backlog lasts at least,
TWINLENS_BENCH_REPETITIONS (3) how often all of it is measured.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from tests.benchmarks import machine, report
from tests.benchmarks.machine import CPUS, CpuSampler
from tests.benchmarks.stub import replace_models
from tests.benchmarks.system import backlog, real_kafka, running, tweets, wait_for
from twinlens import records
from twinlens.broker import topics
from twinlens.broker.client import new_admin
from twinlens.broker.reading import read_topics
from twinlens.settings import Settings

PARTITIONS = 16
JOIN_S = 240.0  #: for all replicas to have partitions
WARM_UP_S = 2.0
SATURATED = 0.9  #: share of the cores in use beyond which they are taken to be the limit
COLUMNS = (
    "replicas",
    "tweets/s",
    "of linear",
    "windows/s",
    "cores busy, whole machine",
    "CPU ms per tweet, own processes",
    "the cores are the limit",
)


@dataclass(frozen=True)
class Measured:
    replicas: int
    tweets_per_s: float
    windows_per_s: float
    seconds: float  #: for which all replicas were busy
    cores_busy: float
    cores: dict[str, float]
    cpu_ms_per_tweet: float  #: of all processes of this benchmark


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_replicas() -> None:
    counts = [int(count) for count in os.environ.get("TWINLENS_BENCH_REPLICAS", "1,2,4,8").split(",")]
    ms_per_text = report.number("TWINLENS_BENCH_STUB_MS_PER_TEXT", 3)
    ms_per_batch = report.number("TWINLENS_BENCH_STUB_MS_PER_BATCH", 2)
    repetitions = int(report.number("TWINLENS_BENCH_REPETITIONS", 3))
    found: dict[int, list[Measured]] = defaultdict(list)
    for repetition in range(repetitions):
        for replicas in counts if repetition % 2 == 0 else counts[::-1]:
            measured = measure(replicas, ms_per_batch, ms_per_text)
            found[replicas].append(measured)
            cores = ", ".join(f"{kind} {used:.2f}" for kind, used in sorted(measured.cores.items()))
            print(
                f"{replicas} replicas: {measured.tweets_per_s:,.0f}/s for {measured.seconds:.0f} s; {cores}", flush=True
            )
    text = (
        f"{machine.description()}\n"
        f"Apache Kafka on the same machine, {PARTITIONS} partitions, exactly once; a stub that sleeps {ms_per_text:g} "
        f"ms per text and {ms_per_batch:g} ms per batch in each path; medians of {repetitions}\n\n"
        f"{report.table(COLUMNS, rows(found))}"
    )
    data: dict[str, Any] = {"ms_per_text": ms_per_text, "ms_per_batch": ms_per_batch}
    runs = [asdict(each) for measured in found.values() for each in measured]
    report.publish(text, "replicas.md", replicas={"machine": machine.description(), **data, "runs": runs})


def rows(found: dict[int, list[Measured]]) -> list[tuple[str, ...]]:
    """Medians. The ratio is to the smallest number's tweets per second and replica."""
    medians = {replicas: statistics.median(each.tweets_per_s for each in runs) for replicas, runs in found.items()}
    first = min(medians)
    lines: list[tuple[str, ...]] = []
    for replicas, runs in sorted(found.items()):
        windows, busy, cpu_ms = (
            statistics.median(getattr(each, name) for each in runs)
            for name in ("windows_per_s", "cores_busy", "cpu_ms_per_tweet")
        )
        share = medians[replicas] / (replicas * medians[first] / first)
        limit = "yes" if busy > SATURATED * CPUS else "no"
        lines.append(
            (
                str(replicas),
                f"{medians[replicas]:,.0f}",
                f"{share:.3f}",
                f"{windows:.1f}",
                f"{busy:.2f} of {CPUS}",
                f"{cpu_ms:.2f}",
                limit,
            )
        )
    return lines


def measure(replicas: int, ms_per_batch: float, ms_per_text: float) -> Measured:
    """One run: replicas join, then comes a backlog that lasts some seconds if they have no overhead."""
    seconds = report.number("TWINLENS_BENCH_STUB_SECONDS", 20) + WARM_UP_S
    count = int(replicas * seconds * 1000 / (2 * ms_per_text))
    with real_kafka() as address:
        settings = Settings.load({"application": f"replicas-{replicas}", "kafka": {"bootstrap_servers": address}})
        topics.create(settings, PARTITIONS, 1)
        prepare = functools.partial(replace_models, ms_per_batch, ms_per_text)
        options: dict[str, Any] = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": CPUS / 100}}
        with running(settings, prepare=prepare, **options) as handle:
            wait_for_members(settings, replicas)
            with CpuSampler() as cpu:
                backlog(settings, tweets(count), PARTITIONS)
                start_ms = (time.time() + WARM_UP_S) * 1000
                wait_for(handle, count)
        return evaluate(settings, replicas, start_ms, cpu)


def wait_for_members(settings: Settings, replicas: int) -> None:
    """Until each replica has its share of the partitions."""
    deadline = time.monotonic() + JOIN_S
    admin = new_admin(settings.kafka)
    try:
        while True:
            group = admin.describe_groups([settings.group_id])[settings.group_id]
            shares = [assigned(member) for member in group["members"]]
            if (
                group["group_state"] == "Stable"
                and len(shares) == replicas
                and sum(shares) == PARTITIONS
                and all(shares)
            ):
                return
            assert time.monotonic() < deadline, f"{replicas} replicas have {shares} partitions"
            time.sleep(0.5)
    finally:
        admin.close()


def assigned(member: dict[str, Any]) -> int:
    """Partitions of a member of the group."""
    assignment = member["member_assignment"]
    return sum(len(topic["partitions"]) for topic in assignment["assigned_partitions"]) if assignment else 0


def evaluate(settings: Settings, replicas: int, start_ms: float, cpu: CpuSampler) -> Measured:
    """From each replica's first window after the warm-up to its last one before the first replica has no more.

    Each replica's own windows bound what is counted of it, since a window is seconds of work.
    """
    windows: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for _, raw in read_topics(settings, [settings.topics.comparisons]):
        record = records.decode_comparison(raw.value)
        window = windows[record.replica].setdefault(record.window, [record.published_at_ms, 0])
        window[1] += record.published
    assert len(windows) == replicas, f"{len(windows)} of {replicas} replicas have published"
    end_ms = min(max(at_ms for at_ms, _ in own.values()) for own in windows.values())
    tweets_per_s = windows_per_s = 0.0
    for own in windows.values():
        inside = sorted((at_ms, count) for at_ms, count in own.values() if start_ms <= at_ms <= end_ms)
        assert len(inside) > 1, "too few windows: raise TWINLENS_BENCH_STUB_SECONDS"
        elapsed_s = (inside[-1][0] - inside[0][0]) / 1000
        tweets_per_s += sum(count for _, count in inside[1:]) / elapsed_s
        windows_per_s += (len(inside) - 1) / elapsed_s
    used = cpu.between(start_ms / 1000, end_ms / 1000)
    return Measured(
        replicas=replicas,
        tweets_per_s=tweets_per_s,
        windows_per_s=windows_per_s,
        seconds=(end_ms - start_ms) / 1000,
        cores_busy=used.busy,
        cores=used.by_kind,
        cpu_ms_per_tweet=1000 * used.own / tweets_per_s,
    )
