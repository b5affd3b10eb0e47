"""Reads the last snapshot and writes new ones, so that a new monitor continues where the last one ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog
from kafka.errors import KafkaError

from twinlens.broker.snapshot_topic import SnapshotWriter, read_last
from twinlens.broker.topics import topic_id
from twinlens.clock import now_ms
from twinlens.errors import AskUser
from twinlens.monitor.snapshot import HEADERS, Snapshot, pack, to_msgpack, unpack
from twinlens.monitor.state import State
from twinlens.monitor.statistics import RateDetector
from twinlens.monitor.view import SnapshotStatus
from twinlens.settings import Settings

log = structlog.get_logger(__name__)

Positions = dict[int, int]  #: partition of the comparisons topic -> offset of the next record to fold


class Image(NamedTuple):
    """An encoded snapshot, with facts about it."""

    encoded: bytes
    positions: Positions
    records: int
    at_ms: int


def new_state(settings: Settings) -> State:
    """The state of a monitor that has read nothing yet."""
    monitor = settings.monitor
    detector = RateDetector(baseline_rate=monitor.alert_rate, run_length_tweets=monitor.alert_run_length_tweets)
    return State(application=settings.application, detector=detector)


class SnapshotKeeper:
    """Call `restore` first, then `run` in a separate thread. Any thread may read `status`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic_id = ""
        self._written: Positions = {}  # positions of the last snapshot
        self.status = SnapshotStatus()

    def restore(self, beginnings: Positions) -> tuple[State, Positions]:
        """The state to continue with and the offsets to read from. `beginnings` are the first offsets that still exist.

        Without a usable snapshot: a new state and `beginnings`. Raises KafkaError and AskUser.
        """
        fresh = new_state(self._settings)
        self._topic_id = topic_id(self._settings.kafka, self._settings.topics.comparisons)
        snapshot = self._last()
        if snapshot is None:
            self._written = beginnings
            return fresh, beginnings
        self._written, lost = snapshot.start(beginnings)
        if lost:
            log.warning("comparisons were removed from their topic before they were counted", offsets=lost)
        self.status = SnapshotStatus(restored_from_ms=snapshot.written_at_ms, lost_offsets=snapshot.lost_offsets + lost)
        log.info("snapshot restored", written_at_ms=snapshot.written_at_ms, records=snapshot.state.records)
        return snapshot.state_for(fresh.detector), self._written

    def _last(self) -> Snapshot | None:
        value = read_last(self._settings)
        if value is None:
            log.info("no snapshot yet, reading the comparisons from their beginning")
            return None
        application, topic = self._settings.application, self._settings.topics.comparisons
        try:
            snapshot = unpack(value)
            if snapshot.state.application != application:
                raise ValueError(f"it is one of application {snapshot.state.application}")
            if (snapshot.topic, snapshot.topic_id) != (topic, self._topic_id):
                raise ValueError(f"it is one of topic {snapshot.topic} with id {snapshot.topic_id}")
        except ValueError as error:
            log.warning("snapshot not used, reading the comparisons from their beginning", reason=str(error))
            return None
        return snapshot

    def take(self, state: State, positions: Positions) -> Image | None:
        """An image of `state` and `positions`, which must not change during the call. None if nothing new was read."""
        if positions == self._written:
            return None
        at_ms = now_ms()
        snapshot = Snapshot(
            state=state, topic=self._settings.topics.comparisons, topic_id=self._topic_id, positions=positions,
            lost_offsets=self.status.lost_offsets, written_at_ms=at_ms,
        )  # fmt: skip
        return Image(to_msgpack(snapshot), positions, state.records, at_ms)

    def run(self, look: Callable[[], Image | None], stopping: threading.Event, at_last: Callable[[], object]) -> None:
        """Write what `look` returns every `monitor.snapshot_period_s` until `stopping`, and again after `at_last`."""
        writer = SnapshotWriter(self._settings)
        try:
            while not stopping.wait(self._settings.monitor.snapshot_period_s):
                self._write(writer, look())
            at_last()
            self._write(writer, look())
        finally:
            writer.close()

    def _write(self, writer: SnapshotWriter, image: Image | None) -> None:
        """Write `image`. A failure is only reported: counts do not depend on it, and the next snapshot tries again."""
        if image is None:
            return
        value = pack(image.encoded)
        try:
            writer.write(value, HEADERS)
        except (KafkaError, AskUser) as error:
            if str(error) != self.status.error:  # log each error once: it may last long
                say = log.error if isinstance(error, AskUser) else log.warning
                say("snapshot not written, trying again with every next one", error=str(error))
            self.status = msgspec.structs.replace(self.status, error=str(error))
            return
        self._written = image.positions
        self.status = msgspec.structs.replace(
            self.status, written_at_ms=image.at_ms, written_records=image.records, written_bytes=len(value), error=None
        )
