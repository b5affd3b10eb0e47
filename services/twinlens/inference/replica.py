"""One replica: a member of the consumer group with its own copy of the model. Three threads with bounded hand-overs,
and one that ends what dead members left open (`broker.recovery`):

    intake ──backlog──▶ compute ──one window──▶ publish
      ▲                                            │
      └───────── read again / commit ──────────────┘

Intake polls, decodes and tokenizes; compute draws a window, runs both paths and compares; publish commits it. While a
window waits for publish compute draws none: where publishing is the slower part it could be committed no sooner, and
would be smaller. A thread that dies, or a call to Kafka that does not return, fails `check_health`, and Ray Serve
starts another replica.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from twinlens.autoscaling import ReplicaStats
from twinlens.broker import access
from twinlens.broker.intake import Intake
from twinlens.broker.publisher import AtLeastOncePublisher, Publisher, SourceOffset, TransactionalPublisher
from twinlens.broker.recovery import Recovery, transactional_id
from twinlens.errors import RedoWindow, ReplaceReplica
from twinlens.inference.compute import Compute
from twinlens.inference.counting import ComparedWindow
from twinlens.inference.decoder import Decoder
from twinlens.inference.outputs import OutputWriter
from twinlens.inference.refusals import RefusalLimit, encode
from twinlens.inference.report import WindowReport
from twinlens.rates import ServiceRate
from twinlens.settings import ONE_MODEL, BatchingSettings, PredictSettings, RawSettings, Settings
from twinlens.threads import WatchedThread
from twinlens.window import Backlog, Item, Window

log = structlog.get_logger(__name__)

DRAW_TIMEOUT_S = 0.2
MEASURE_TIMEOUT_S = 5.0  #: for the intake thread to measure the lag
LEAVE_S = 10.0  #: for the intake thread to leave the group
MAX_REDONE = 12  #: aborted windows in a row, some 15 s, after which another replica shall try
RAW_CHANGES = {"max_batch_items", "max_batch_tokens"}  #: what may change of `raw` on a running replica


class Replica:
    """Wires the stages together. `name` is unique among living replicas; `instance_id` makes it a static member.

    `observe` is called with every window that was published or must be read again, by the publish thread.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        instance_id: str | None = None,
        observe: Callable[[WindowReport], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._observe = observe
        access.check_application(settings)
        self._compute = Compute(settings, name)
        self._writer = OutputWriter(settings, name)
        self._backlog = Backlog(settings.intake.max_buffered_items, settings.intake.max_buffered_bytes)
        decoder = Decoder(settings, self._compute.tokenizer)
        self._refusals = RefusalLimit(settings.intake)
        own_id = transactional_id(settings.group_id, instance_id or name, uuid.uuid4().hex[:8])
        self._recovery = Recovery(settings.kafka, settings.group_id, own_id)
        exactly_once = settings.output.delivery == "exactly_once"
        self._publisher: Publisher = (
            TransactionalPublisher(settings, own_id) if exactly_once else AtLeastOncePublisher(settings, name)
        )
        self._intake = Intake(
            settings,
            name,
            self._backlog,
            decoder,
            assigned=self._recovery.ask,
            resume=self._refusals.resume,
            instance_id=instance_id,
        )
        self._commit_outside = None if exactly_once else self._intake.commit
        self._compared: queue.SimpleQueue[ComparedWindow | None] = queue.SimpleQueue()
        self._taken = threading.Event()  #: nothing waits in `_compared`; compute clears it, publish sets it
        self._taken.set()
        self._service_rate = ServiceRate()
        self._unread_records = 0  #: at the broker, when the lag was last measured
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._stop_lock = threading.Lock()
        self._publishing = WatchedThread("publish", self._run_publish)
        self._threads = [
            WatchedThread("intake", self._intake.run),
            WatchedThread("compute", self._run_compute),
            self._publishing,
            *([WatchedThread("recovery", self._recovery.run)] if exactly_once else []),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finish and commit the windows in hand, leave the group, end the threads. A second call does nothing."""
        with self._stop_lock:  # a second caller waits, lest the process ends in the middle of a commit
            if not self._stopping:
                self._stop(timeout_s)

    def _stop(self, timeout_s: float) -> None:
        self._stopping = True
        self._backlog.close()
        _, compute, publish, *_ = self._threads
        deadline = time.monotonic() + timeout_s
        for thread in (compute, publish):
            if not thread.join(max(0.0, deadline - time.monotonic())):
                log.warning("thread did not end in time; its window will be read again", thread=thread.name)
        self._intake.stop()
        self._recovery.stop()
        self._threads[0].join(LEAVE_S)
        self._publisher.close()
        log.info("replica stopped", replica=self.name)

    def check_health(self) -> None:
        """Raises ReplaceReplica when this replica cannot go on."""
        for thread in self._threads:
            thread.check()
        limit = self._settings.output.commit_deadline_s
        if (busy := self._publisher.busy_s) > limit:
            raise ReplaceReplica(
                f"a call to Kafka has not returned for {busy:.0f} s (output.commit_deadline_s {limit})"
            )

    def autoscaling_stats(self) -> ReplicaStats:
        """What autoscaling goes by. Waits for the intake thread, for `MEASURE_TIMEOUT_S` at most."""
        lag = None if self._stopping else self._intake.measure(MEASURE_TIMEOUT_S)
        if lag is None:
            return ReplicaStats(service_records_per_s=self._service_rate.records_per_s)
        self._unread_records = lag.unread_records
        return ReplicaStats(
            partitions=lag.partitions,
            measured_partitions=lag.measured_partitions,
            lag_records=lag.unread_records + self._backlog.unfinished,
            arrival_records_per_s=lag.arrival_records_per_s,
            service_records_per_s=self._service_rate.records_per_s,
        )

    def reconfigure(self, batching: BatchingSettings, raw: RawSettings, predict: PredictSettings) -> None:
        """Take other window and batch limits and pipeline arguments from the next window on; no record is dropped."""
        now = self._settings
        fixed = {"model", "revision", "dtype"}
        if any(getattr(predict, name) != getattr(now.predict, name) for name in fixed):
            raise ValueError("predict.model, revision and dtype cannot change on a running replica; deploy anew")
        if raw.model_dump(exclude=RAW_CHANGES) != now.raw.model_dump(exclude=RAW_CHANGES):
            raise ValueError(f"of raw only {' and '.join(sorted(RAW_CHANGES))} can change on a running replica")
        if batching.max_window_items > now.intake.max_buffered_items:
            raise ValueError("batching.max_window_items may not exceed intake.max_buffered_items")
        if predict.mode == "audited" and not now.one_model:
            raise ValueError(ONE_MODEL)
        self._changes.put(lambda: self._compute.reconfigure(batching, raw, predict))

    def _run_compute(self) -> None:
        """The compute thread: draw, observe twice, compare, hand over; ends when stopped."""
        try:
            start = time.monotonic()
            while self._await_taken():
                self._apply_changes()
                window = self._backlog.draw(self._take, self._compute.max_window_items, DRAW_TIMEOUT_S)
                if window is not None:
                    behind = self._backlog.items > 0 or self._unread_records > self._compute.max_window_items
                    self._hand_over(self._compute.run(window))
                    # Only a replica that is behind shows what it can do: windows grow with what waits, so that one
                    # that is not gets through just as much as arrives, and is busy all the same.
                    if behind:
                        self._service_rate.add(len(window.items), time.monotonic() - start)
                start = time.monotonic()
        finally:
            self._compute.close()
            self._hand_over(None)

    def _hand_over(self, done: ComparedWindow | None) -> None:
        self._taken.clear()
        self._compared.put(done)

    def _await_taken(self) -> bool:
        """Wait until publish has taken what was handed over; whether there shall be another window then."""
        while not self._ending and not self._taken.wait(DRAW_TIMEOUT_S):
            pass
        return not self._ending

    @property
    def _ending(self) -> bool:
        return self._stopping or self._publishing.error is not None

    def _run_publish(self) -> None:
        """The publish thread: one transaction per window, in order."""
        redone = 0  # windows in a row that were ours and could not be committed
        while (done := self._compared.get()) is not None:
            self._taken.set()
            window = done.window
            try:
                self._commit(done)
            except RedoWindow as reason:
                log.warning("window will be read again", window=window.number, reason=str(reason))
                self._report(done, None)
                abandoned = self._backlog.abandon(window)
                self._intake.read_again(abandoned)
                self._backlog.finish(window)
                redone += bool(abandoned)
                if redone >= MAX_REDONE:
                    raise ReplaceReplica(f"{redone} windows in a row could not be committed: {reason}") from reason
                time.sleep(min(0.05 * 2**redone, 2.0) if abandoned else 0)  # a broker in trouble gets a pause
            else:
                redone = 0
            del done, window  # the bytes are given free already; let go of them before the next window comes

    def _commit(self, done: ComparedWindow) -> None:
        """Publish a window and its offsets. Raises RedoWindow when it is no longer ours or was aborted."""
        window = done.window
        if not self._backlog.current(window):
            raise RedoWindow("its partitions were revoked")
        start = time.perf_counter()
        refusals = self._refusals.after(window)
        offsets = {p: SourceOffset(offset, encode(refusals[p])) for p, offset in window.next_offsets.items()}
        records = self._writer.records(done, now_ms=time.time_ns() // 1_000_000)
        self._publisher.publish(records, offsets, lambda: self._claim(window))
        self._refusals.committed(refusals)
        publish_s = time.perf_counter() - start
        if self._commit_outside is None:
            self._backlog.finish(window)
        else:
            self._commit_outside(window, offsets)
        self._compute.sizing.published(len(window.items), publish_s)
        self._report(done, publish_s)

    def _report(self, done: ComparedWindow, publish_s: float | None) -> None:
        """Metrics are not worth a replica."""
        tweets = len(done.comparison.verdicts)
        refused = len(done.window.items) - tweets
        try:
            self._observe(WindowReport(tweets, refused, done.dispatch, done.compute_s, publish_s, done.paths))
        except Exception:
            log.exception("a window was not reported")

    def _claim(self, window: Window) -> Any | None:
        metadata = self._intake.group_metadata()
        return metadata if metadata is not None and self._backlog.current(window) else None

    def _take(self, candidates: Sequence[Item]) -> int:
        self._apply_changes()  # what came while it waited holds for this window already
        return self._compute.take(candidates, self._backlog.items, now_s=time.time())

    def _apply_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get()()
