"""The monitor: reads `comparisons` and `divergences`, keeps counts, and answers requests. One per application.

Its state comes only from the records it folds (`monitor.state`), so it may be killed at any time. The next monitor
continues from the last snapshot, reads the later records, and gets the same counts. Replicas never wait for it.
"""

from __future__ import annotations

import threading
from functools import partial

import structlog
from kafka import KafkaConsumer, TopicPartition

from twinlens.broker.client import TRANSIENT, naming_denials, new_consumer
from twinlens.monitor.fold import Fold
from twinlens.monitor.keeper import SnapshotKeeper, new_state
from twinlens.monitor.lag import LagWatch
from twinlens.monitor.view import View
from twinlens.settings import Settings
from twinlens.threads import WatchedThread
from twinlens.window.item import Partition

log = structlog.get_logger(__name__)

POLL_MS = 200
RETRY_S = 1.0  #: between a failed poll and the next one
STOP_S = 5.0  #: the longest that `stop` waits for each thread


class Monitor:
    """Owns the fold and the threads around it. Any thread may call `view`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fold = Fold(settings, new_state(settings))
        self._keeper = SnapshotKeeper(settings)
        self._lag = LagWatch(settings)
        self._stopping = threading.Event()
        self._following = WatchedThread("monitor", self._follow)
        self._threads = [
            self._following,
            WatchedThread("snapshots", self._keep_snapshots),
            WatchedThread("lag", partial(self._lag.run, self._stopping)),
        ]

    def start(self) -> None:
        """Start following the topics."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads. The reading thread ends first, so that the last snapshot has everything it folded."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_S)

    def check_health(self) -> None:
        """Raises ReplaceReplica if a thread has died."""
        for thread in self._threads:
            thread.check()

    def view(self, now_ms: int) -> View:
        """Everything to show at `now_ms`."""
        return self._fold.view(now_ms, self._lag.lag, self._keeper.status)

    def _follow(self) -> None:
        """The body of the monitor thread. Raises AskUser if an ACL is missing."""
        with naming_denials(self._settings.kafka, "Read"):
            self._follow_topics()

    def _follow_topics(self) -> None:
        """Read every record of the two topics, from the end of the last snapshot."""
        consumer = new_consumer(self._settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest")
        try:
            ends = self._begin(consumer)
            while not self._stopping.is_set():
                try:
                    self._fold.take(consumer.poll(POLL_MS))
                    passed = {partition: consumer.position(partition) for partition in ends}
                    self._fold.passed({each: at for each, at in passed.items() if at is not None}, ends)
                except TRANSIENT as error:
                    log.warning("the topics could not be read, trying again", error=repr(error))
                    for partition, position in self._fold.positions.items():
                        consumer.seek(TopicPartition(*partition), position)  # the failed poll may have dropped records
                    self._stopping.wait(RETRY_S)
        finally:
            consumer.close()

    def _begin(self, consumer: KafkaConsumer) -> dict[Partition, int]:
        """Load the last snapshot. Returns the current end offsets: when they are reached, the monitor has caught up."""
        topics = self._settings.topics
        comparisons, divergences = (
            [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
            for topic in (topics.comparisons, topics.divergences)
        )
        consumer.assign([*comparisons, *divergences])
        ends, beginnings = (
            offsets([*comparisons, *divergences]) for offsets in (consumer.end_offsets, consumer.beginning_offsets)
        )
        # Only the newest diverging tweets are shown. Transaction markers use offsets too, so go back twice as far.
        back = 2 * self._settings.monitor.recent_divergences
        positions = {partition: max(beginnings[partition], ends[partition] - back) for partition in divergences}
        state, starts = self._keeper.restore({each.partition: beginnings[each] for each in comparisons})
        positions |= {partition: starts[partition.partition] for partition in comparisons}
        self._fold.begin(state, positions)
        for partition, position in positions.items():
            consumer.seek(partition, position)
        return dict(ends)

    def _keep_snapshots(self) -> None:
        """The body of the snapshots thread. It has a separate client: an unavailable broker must not delay the fold."""
        self._keeper.run(
            lambda: self._fold.image(self._keeper.take), self._stopping, at_last=lambda: self._following.join(STOP_S)
        )
