"""Members that come and go, on a real Kafka: only partitions that move pause; nothing is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from kafka.coordinator.consumer import ConsumerCoordinator

from tests.conftest import ModelFolder
from tests.support.replicas import assigned, committed, lines, produce, running_replica, wait_until
from twinlens.audit import audit
from twinlens.broker.client import new_admin
from twinlens.broker.intake import POLL_MS
from twinlens.replica.replica import Replica
from twinlens.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def settings(new_kafka_settings: Callable[..., Settings], model_folder: ModelFolder) -> Settings:
    return new_kafka_settings(partitions=4, raw={"model": str(model_folder())}, batching={"max_window_items": 20})


class Callbacks:
    """What kafka-python told a replica's intake, in order."""

    def __init__(self, replica: Replica) -> None:
        self.seen: list[tuple[str, list[int]]] = []
        intake: Any = replica.parts.intake
        for name in ("on_partitions_assigned", "on_partitions_revoked", "on_partitions_lost"):
            setattr(intake, name, self._recording(name.removeprefix("on_partitions_"), getattr(intake, name)))

    def _recording(self, name: str, real: Any) -> Any:
        def both(partitions: Any) -> None:
            self.seen.append((name, sorted(p.partition for p in partitions)))
            real(partitions)

        return both

    def partitions(self, name: str) -> list[int]:
        return [partition for what, partitions in self.seen if what == name for partition in partitions]


def feed(settings: Settings, count: int) -> int:
    return produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(count))])


def test_a_second_member_takes_half_and_the_other_half_never_pauses(settings: Settings) -> None:
    sent = feed(settings, 1000)
    with running_replica(settings, "first") as first:
        callbacks = Callbacks(first)
        wait_until(lambda: committed(settings, first) > 0, "the first commit")
        with running_replica(settings, "second") as second:
            wait_until(lambda: len(assigned(second)) == 2, "the second has two partitions")
            moved, stayed = assigned(second), assigned(first)
            sent += feed(settings, 1000)
            wait_until(lambda: committed(settings, first) >= sent, "all committed")
            assert {first.parts.backlog.epoch(partition) for partition in stayed} == {0}, "nothing of them was dropped"
        wait_until(lambda: len(assigned(first)) == 4, "the first has all of them again")
        sent += feed(settings, 200)
        wait_until(lambda: committed(settings, first) >= sent, "all committed")
    assert len(stayed) == 2
    assert callbacks.partitions("lost") == []
    assert callbacks.seen[1][0] == "revoked"
    assert sorted(callbacks.seen[1][1]) == sorted(number for _, number in moved), "only partitions that move"
    report = audit(settings)
    assert report.clean
    assert (report.published, report.monitor_tweets) == (sent, sent)


def test_partitions_that_are_added_are_read_however_long_the_group_takes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python forgets such a join when it ends between two polls; every join here takes longer than one."""
    join = ConsumerCoordinator._do_join_and_sync_async

    async def slow_join(coordinator: Any) -> Any:
        joined = await join(coordinator)
        await coordinator._net.sleep(1.5 * POLL_MS / 1000)
        return joined

    monkeypatch.setattr(ConsumerCoordinator, "_do_join_and_sync_async", slow_join)
    with running_replica(settings, "only") as replica, closing(new_admin(settings.kafka)) as admin:
        wait_until(lambda: len(assigned(replica)) == 4, "the partitions there are")
        admin.create_partitions({settings.topics.input: 6})
        replica.parts.intake.consumer._client.cluster.request_update()
        wait_until(lambda: len(assigned(replica)) == 6, "those that were added, too")


def test_a_static_member_that_restarts_gets_its_partitions_without_a_rebalance(settings: Settings) -> None:
    with running_replica(settings, "other", "member-1") as other:
        with running_replica(settings, "first", "member-0") as first:
            wait_until(
                lambda: len(assigned(first)) == len(assigned(other)) == 2,
                "two partitions each",
            )
            own = assigned(first)
            callbacks = Callbacks(other)
            sent = feed(settings, 400)
            wait_until(lambda: committed(settings, first) >= sent, "all committed")
        with running_replica(settings, "again", "member-0") as again:
            wait_until(lambda: assigned(again) == own, "the same partitions", 5.5)
            sent += feed(settings, 400)
            wait_until(lambda: committed(settings, again) >= sent, "all committed")
            assert callbacks.seen == []
    report = audit(settings)
    assert report.clean
    assert report.published == sent
