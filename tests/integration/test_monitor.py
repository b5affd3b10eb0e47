"""Monitors in this process: a restart goes on from the last snapshot, and what fails on the way is no wrong count."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, TopicAuthorizationFailedError
from structlog.testing import capture_logs

from tests.support.comparisons import comparison, without_alerts
from tests.support.replicas import is_unwell, published, wait_until
from twinlens.audit import read_topics
from twinlens.broker import snapshot_topic, topics
from twinlens.broker.client import new_admin, new_producer
from twinlens.broker.snapshot_topic import SnapshotWriter, read_last
from twinlens.errors import AskUser, ReplaceReplica
from twinlens.monitor import monitor as module
from twinlens.monitor.fold import Fold
from twinlens.monitor.keeper import new_state
from twinlens.monitor.monitor import Monitor
from twinlens.monitor.snapshot import HEADERS, Snapshot, pack, to_msgpack, unpack
from twinlens.monitor.summary import Summary, summary
from twinlens.monitor.view import View
from twinlens.records import ComparisonRecord, Tally, decode_comparison
from twinlens.records import encode as encode_record
from twinlens.settings import Settings
from twinlens.window.item import Partition

NewSettings = Callable[..., Settings]
LATER = 1_700_000_100_000  #: views are taken for this time
OFTEN = {"snapshot_period_s": 0.05}
NEVER = {"snapshot_period_s": 3600}


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Monitor]:
    monitor = Monitor(settings)
    monitor.start()
    try:
        yield monitor
    finally:
        monitor.stop()


def seen(monitor: Monitor, records: int) -> View:
    """The view once the monitor has read its topics and counted `records` comparison records."""

    def there() -> bool:
        monitor.check_health()
        view = monitor.view(LATER)
        return view.caught_up and view.summary.records >= records

    wait_until(there, f"{records} comparison records counted")
    return monitor.view(LATER)


def windows(settings: Settings, first: int, count: int, partitions: int = 2) -> list[ComparisonRecord]:
    """One comparison per partition for the windows `first` to `first + count`, of ten tweets each."""
    return [
        comparison(
            number * 10,
            number * 10 + 9,
            application=settings.application,
            source_topic=settings.topics.input,
            source_partition=partition,
            window=f"r0-{number}",
            tally=Tally(tweets=10, label=number % 3),
            labels={"good": {"good": 8, "bad": 2}},
        )
        for number in range(first, first + count)
        for partition in range(partitions)
    ]


def publish(settings: Settings, records: Iterable[ComparisonRecord]) -> None:
    """In one transaction, as replicas do: its markers take offsets, too."""
    producer = new_producer(settings.kafka, transactional_id=f"{settings.application}-publisher")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for record in records:
            producer.send(settings.topics.comparisons, encode_record(record), partition=record.source_partition)
        producer.commit_transaction()
    finally:
        producer.close(timeout=5)


def straight(settings: Settings, records: Iterable[ComparisonRecord]) -> Summary:
    """The summary of a fold that was never interrupted; alerts depend on the order of partitions."""
    state = new_state(settings)
    for record in records:
        state.fold(record)
    return without_alerts(summary(state, LATER))


@pytest.mark.kafka
def test_a_restart_has_the_same_counts_though_the_records_are_gone(new_kafka_settings: NewSettings) -> None:
    settings = new_kafka_settings(monitor=OFTEN)
    old = windows(settings, 0, 50)
    publish(settings, old)
    with running(settings) as first:
        before = seen(first, 100)
        assert before.snapshot.restored_from_ms is None
        wait_until(lambda: first.view(LATER).snapshot.written_records == 100, "a snapshot of all records")
        wait_until(lambda: stored_positions(settings) == {0: 51, 1: 51}, "a snapshot beyond the marker")
    delete(settings, stored_positions(settings))
    assert published(settings, "comparisons")["comparisons"] == []

    with running(settings) as second:
        after = seen(second, 100)
        assert after.summary == before.summary
        assert without_alerts(after.summary) == straight(settings, old)
        assert (after.snapshot.records_read, after.snapshot.lost_offsets) == (0, 0)
        assert after.snapshot.restored_from_ms is not None
        new = windows(settings, 50, 5)
        publish(settings, new)
        assert without_alerts(seen(second, 110).summary) == straight(settings, old + new)
        assert second.view(LATER).snapshot.records_read == 10
        wait_until(lambda: stored_positions(settings) == {0: 57, 1: 57}, "a snapshot beyond the marker")

    # What retention removes before any monitor has read it cannot be counted, but it is reported.
    publish(settings, windows(settings, 55, 3))
    delete(settings, {0: 60, 1: 57})
    for read in (3, 0):
        with running(settings) as monitor:
            after = seen(monitor, 113)
            assert (after.snapshot.records_read, after.snapshot.lost_offsets) == (read, 3)
    assert after.summary.records == 113


def stored_positions(settings: Settings) -> dict[int, int]:
    """Of the last snapshot."""
    return unpack(read_last(settings) or b"").positions


def delete(settings: Settings, before: dict[int, int]) -> None:
    """As retention does, but at once."""
    admin = new_admin(settings.kafka)
    try:
        admin.delete_records({TopicPartition(settings.topics.comparisons, n): offset for n, offset in before.items()})
    finally:
        admin.close()


@pytest.mark.kafka
def test_a_snapshot_written_while_records_flow_is_never_wrong(new_kafka_settings: NewSettings) -> None:
    settings = new_kafka_settings(monitor={"snapshot_period_s": 0.01})
    records = windows(settings, 0, 150)
    producer = new_producer(settings.kafka)
    with running(settings) as monitor:
        seen(monitor, 0)
        for record in records:
            producer.send(settings.topics.comparisons, encode_record(record), partition=record.source_partition)
            producer.flush(timeout=10)
        producer.close(timeout=5)
        seen(monitor, len(records))
    found = [unpack(record.value) for _, record in read_topics(settings, (settings.topics.snapshots,))]
    assert len(found) > 10
    assert found[-1].state.records == len(records), "a stop writes what was folded since the last one"
    topic = published(settings, "comparisons")["comparisons"]
    for snapshot in found:
        rest = [record for record in topic if record.offset >= snapshot.positions[record.partition]]
        assert snapshot.state.records + len(rest) == len(records), "positions and state are of the same moment"
        state = snapshot.state
        for record in rest:
            state.fold(decode_comparison(record.value))
        assert state.repeated == 0
        assert without_alerts(summary(state, LATER)) == straight(settings, records)


def test_a_poll_that_fails_loses_nothing(new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other poll that brings comparisons drops them and raises, as when a connection breaks in the middle."""
    settings = new_settings(monitor=OFTEN)
    real, turns = KafkaConsumer.poll, itertools.count()

    def failing(consumer: KafkaConsumer, *arguments: Any, **options: Any) -> Any:
        polled = real(consumer, *arguments, **options)
        if any(each.topic == settings.topics.comparisons for each in polled) and next(turns) % 2 == 0:
            raise KafkaConnectionError("gone in the middle")
        return polled

    monkeypatch.setattr(KafkaConsumer, "poll", failing)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    records = windows(settings, 0, 40)
    with running(settings) as monitor:
        for start in range(0, len(records), 20):
            publish(settings, records[start : start + 20])
            view = seen(monitor, start + 20)
    assert next(turns) >= 4
    assert without_alerts(view.summary) == straight(settings, records)


def test_a_right_that_is_missing_fails_the_health_check(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(new_settings(monitor=NEVER)) as monitor:
        seen(monitor, 0)

        def denied(*_: Any, **__: Any) -> Any:
            raise TopicAuthorizationFailedError({"comparisons"})

        monkeypatch.setattr(KafkaConsumer, "poll", denied)
        wait_until(lambda: is_unwell(monitor), "the health check fails")
        with pytest.raises(ReplaceReplica, match=r"monitor thread died: Kafka denies .* Read on the topic comparisons"):
            monitor.check_health()


def test_a_record_that_breaks_the_fold_is_in_no_snapshot() -> None:
    """Its partition comes after one whose position has moved: without a poll of one's own that is a matter of luck."""
    settings = Settings.load({})
    good, bad = windows(settings, 0, 1)
    bad = msgspec.structs.replace(bad, tally=Tally(tweets=1, label=2))

    def polled(*records: ComparisonRecord) -> dict[Partition, list[Any]]:
        return {
            (settings.topics.comparisons, each.source_partition): [SimpleNamespace(offset=0, value=encode_record(each))]
            for each in records
        }

    def image(fold: Fold) -> Any:
        return fold.image(lambda state, positions: (state.records, positions))

    broken, whole = Fold(settings, new_state(settings)), Fold(settings, new_state(settings))
    assert image(whole) is None, "nothing was restored yet"
    for fold in (broken, whole):
        fold.begin(new_state(settings), {})
    with pytest.raises(ValueError, match="cannot be"):
        broken.take(polled(good, bad))
    assert image(broken) is None
    whole.take(polled(good))
    assert image(whole) == (1, {good.source_partition: 1})


def test_a_broker_that_does_not_take_snapshots_is_tried_again(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings(monitor=OFTEN)
    real, failures = snapshot_topic.new_producer, iter([AskUser("nobody answers"), AskUser("nobody answers"), None])

    def no_producer_yet(*arguments: Any, **options: Any) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        producer = real(*arguments, **options)
        if next(producers) == 0:
            monkeypatch.setattr(producer, "send", timing_out)
        return producer

    def timing_out(*_: Any, **__: Any) -> Any:
        raise KafkaTimeoutError("no metadata")

    producers, errors = itertools.count(), set()
    monkeypatch.setattr(snapshot_topic, "new_producer", no_producer_yet)
    records = windows(settings, 0, 5)
    publish(settings, records)
    with capture_logs() as logs, running(settings) as monitor:
        view = seen(monitor, len(records))

        def written() -> bool:
            monitor.check_health()
            errors.add(monitor.view(LATER).snapshot.error)
            return monitor.view(LATER).snapshot.written_records == len(records)

        wait_until(written, "a snapshot in the end")
        assert monitor.view(LATER).snapshot.error is None
    assert without_alerts(view.summary) == straight(settings, records)
    said = [(each["log_level"], each["error"]) for each in logs if "not written" in each["event"]]
    assert said == [("error", "nobody answers"), ("warning", "KafkaTimeoutError: no metadata")], "each of them once"


def test_a_snapshot_that_is_too_large_is_told_and_the_counts_go_on(new_settings: NewSettings) -> None:
    """Then a restart reads the topic from its beginning, as it would without snapshots."""
    settings = new_settings(monitor=OFTEN)
    small = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"max_request_bytes": 1024})})
    noisy = [
        msgspec.structs.replace(each, causes={f"{each.window}-{n * 7919 % 100003}": n for n in range(40)})
        for each in windows(settings, 0, 10)
    ]
    publish(settings, noisy)
    with capture_logs() as logs:
        for _ in range(2):
            with running(small) as monitor:
                seen(monitor, len(noisy))
                wait_until(lambda: "max_request_bytes" in (monitor.view(LATER).snapshot.error or ""), "it is reported")
                publish(settings, windows(settings, 10, 1))
                view = seen(monitor, len(noisy) + 2)
                assert view.snapshot.restored_from_ms is None
    assert read_last(settings) is None
    said = [each for each in logs if "not written" in each["event"]]
    assert [each["log_level"] for each in said] == ["error", "error"], "once by each monitor"


@pytest.mark.parametrize("case", ["no snapshot at all", "another version", "another topic"])
def test_a_snapshot_that_cannot_be_used_is_none(new_settings: NewSettings, case: str) -> None:
    settings = new_settings(monitor=NEVER)
    other = Snapshot(
        version=99 if case == "another version" else 1, state=new_state(settings), topic=settings.topics.comparisons,
        topic_id="that of a topic of this name that was deleted", positions={0: 5, 1: 5}, written_at_ms=1,
    )  # fmt: skip
    write(settings, b"x" if case == "no snapshot at all" else pack(to_msgpack(other)))
    records = windows(settings, 0, 5)
    publish(settings, records)
    with capture_logs() as logs, running(settings) as monitor:
        view = seen(monitor, len(records))
    assert without_alerts(view.summary) == straight(settings, records)
    assert view.snapshot.restored_from_ms is None
    assert [each["log_level"] for each in logs if "not used" in each["event"]] == ["warning"]
    assert unpack(read_last(settings) or b"").state.records == len(records), "the next one is good again"


def write(settings: Settings, *values: bytes | None) -> None:
    writer = SnapshotWriter(settings)
    try:
        for value in values:
            writer.write(value, HEADERS)  # type: ignore[arg-type]
    finally:
        writer.close()


def test_the_last_snapshot_is_found_behind_those_of_other_applications(new_settings: NewSettings) -> None:
    settings = new_settings()
    other = settings.model_copy(update={"application": "other"})
    assert read_last(settings) is None
    write(settings, b"old", b"new")
    assert read_last(settings) == b"new"
    write(other, *(b"other" for _ in range(30)))
    assert read_last(settings) == b"new"
    write(settings, b"newest")
    assert read_last(settings) == b"newest"
    assert read_last(other) == b"other"
    write(settings, None)
    assert read_last(settings) is None, "a tombstone: somebody wants to start again"


def test_without_its_topic_there_is_a_word_about_it(broker: str, new_settings: NewSettings) -> None:
    settings = new_settings()
    nowhere = settings.model_copy(update={"topics": settings.topics.model_copy(update={"snapshots": "nowhere"})})
    with pytest.raises(AskUser, match=r"Missing topics: nowhere\. Create them with `twinlens topics"):
        topics.check(nowhere)
    with running(nowhere) as monitor:
        wait_until(lambda: is_unwell(monitor), "the health check fails")
        with pytest.raises(ReplaceReplica, match="Missing topics: nowhere"):
            monitor.check_health()


@pytest.mark.kafka
def test_the_topic_is_compacted_and_has_one_partition(new_kafka_settings: NewSettings) -> None:
    settings = new_kafka_settings(monitor=NEVER)
    assert topics.check(settings) == 2
    admin = new_admin(settings.kafka)
    try:
        states = {state.name: state.partitions for state in topics.describe(admin, settings)}
        assert (states[settings.topics.comparisons], states[settings.topics.snapshots]) == (2, 1)
        resource = ConfigResource(ConfigResourceType.TOPIC, settings.topics.snapshots)
        configs = admin.describe_configs([resource])["topic"][settings.topics.snapshots]
    finally:
        admin.close()
    assert configs["cleanup.policy"]["value"] == "compact"
    assert int(configs["max.message.bytes"]["value"]) == settings.kafka.max_request_bytes
