"""One replica: a member of the consumer group with its own copy of the model. It has three threads with bounded
hand-overs, and one that aborts transactions of members that died (`broker.recovery`):

    intake ──backlog──▶ compute ──one window──▶ publish
      ▲                                            │
      └───────── read again / commit ──────────────┘

Intake polls, decodes and tokenizes. Compute draws a window, runs both paths and compares. Publish commits it. When a
thread dies or a call to Kafka does not return, `check_health` fails and Ray Serve starts another replica.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from twinlens.autoscaling import ReplicaStats
from twinlens.broker import access
from twinlens.broker.intake import Intake
from twinlens.broker.publisher import AtLeastOncePublisher, Publisher, TransactionalPublisher
from twinlens.broker.recovery import Recovery, transactional_id
from twinlens.errors import ReplaceReplica
from twinlens.replica.compute import Compute
from twinlens.replica.decode import Decoder
from twinlens.replica.handover import HandOver
from twinlens.replica.inference import Inference
from twinlens.replica.outputs import OutputWriter
from twinlens.replica.publishing import Publishing
from twinlens.replica.refusals import RefusalLimit
from twinlens.replica.report import WindowReport
from twinlens.settings import ONE_MODEL, BatchingSettings, PredictSettings, RawSettings, Settings
from twinlens.threads import WatchedThread
from twinlens.window.backlog import Backlog

log = structlog.get_logger(__name__)

MEASURE_TIMEOUT_S = 5.0  #: for the intake thread to measure the lag
LEAVE_S = 10.0  #: for the intake thread to leave the group
RAW_CHANGES = {"max_batch_items", "max_batch_tokens"}  #: what may change of `raw` on a running replica

Observe = Callable[[WindowReport], None]


@dataclass(frozen=True)
class Parts:
    """What a replica is made of, in the order in which a tweet passes through."""

    intake: Intake
    backlog: Backlog
    compute: Compute
    handover: HandOver
    publishing: Publishing
    publisher: Publisher
    recovery: Recovery | None  #: exactly-once delivery only


def new_replica(
    settings: Settings, name: str, instance_id: str | None = None, observe: Observe = lambda _: None
) -> Replica:
    """Load the models, connect to Kafka, and wire the parts together. Raises AskUser.

    `name` is unique among running replicas; `instance_id` makes this one a static member. The publish thread calls
    `observe` with every window that was published or must be read again.
    """
    access.check_application(settings)
    inference = Inference(settings, name)
    backlog = Backlog(settings.intake.max_buffered_items, settings.intake.max_buffered_bytes)
    refusals = RefusalLimit(settings.intake)
    handover = HandOver()
    exactly_once = settings.output.delivery == "exactly_once"
    own_id = transactional_id(settings.group_id, instance_id or name, uuid.uuid4().hex[:8])
    recovery = Recovery(settings.kafka, settings.group_id, own_id) if exactly_once else None
    publisher: Publisher = (
        TransactionalPublisher(settings, own_id) if exactly_once else AtLeastOncePublisher(settings, name)
    )
    intake = Intake(
        settings,
        name,
        backlog,
        Decoder(settings.intake, inference.tokenizer.tokenize),
        assigned=(lambda: None) if recovery is None else recovery.ask,
        resume=refusals.resume,
        instance_id=instance_id,
    )
    publishing = Publishing(
        handover=handover,
        backlog=backlog,
        intake=intake,
        publisher=publisher,
        writer=OutputWriter(settings, name),
        refusals=refusals,
        sizing=inference.sizing,
        commit_outside=not exactly_once,
        observe=observe,
    )
    compute = Compute(backlog, inference, handover)
    return Replica(settings, name, Parts(intake, backlog, compute, handover, publishing, publisher, recovery))


class Replica:
    """The threads around the parts: starts, watches and stops them."""

    def __init__(self, settings: Settings, name: str, parts: Parts) -> None:
        self.name = name
        self.parts = parts
        self.stopping = False
        self._settings = settings
        self._stop_lock = threading.Lock()
        self._intake = WatchedThread("intake", parts.intake.run)
        self._compute = WatchedThread("compute", parts.compute.run)
        self._publish = WatchedThread("publish", parts.publishing.run)
        self._threads = [self._intake, self._compute, self._publish]
        if parts.recovery is not None:
            self._threads.append(WatchedThread("recovery", parts.recovery.run))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finish and commit the windows in hand, leave the group, end the threads. A second call does nothing."""
        with self._stop_lock:  # a second caller waits: the process must not end in the middle of a commit
            if not self.stopping:
                self._stop(timeout_s)

    def _stop(self, timeout_s: float) -> None:
        self.stopping = True
        self.parts.compute.stop()
        self.parts.backlog.close()
        deadline = time.monotonic() + timeout_s
        for thread in (self._compute, self._publish):
            if not thread.join(max(0.0, deadline - time.monotonic())):
                log.warning("thread did not end in time; its window will be read again", thread=thread.name)
        self.parts.intake.stop()
        if self.parts.recovery is not None:
            self.parts.recovery.stop()
        self._intake.join(LEAVE_S)
        self.parts.publisher.close()
        log.info("replica stopped", replica=self.name)

    def check_health(self) -> None:
        """Raises ReplaceReplica when this replica cannot go on."""
        for thread in self._threads:
            thread.check()
        limit = self._settings.output.commit_deadline_s
        if (busy := self.parts.publisher.busy_s) > limit:
            raise ReplaceReplica(
                f"a call to Kafka has not returned for {busy:.0f} s (output.commit_deadline_s {limit})"
            )

    def autoscaling_stats(self) -> ReplicaStats:
        """What autoscaling decides by. Waits for the intake thread, `MEASURE_TIMEOUT_S` at most."""
        compute = self.parts.compute
        lag = None if self.stopping else self.parts.intake.measure(MEASURE_TIMEOUT_S)
        if lag is None:
            return ReplicaStats(service_records_per_s=compute.service_rate.records_per_s)
        compute.unread_records = lag.unread_records
        return ReplicaStats(
            partitions=lag.partitions,
            measured_partitions=lag.measured_partitions,
            lag_records=lag.unread_records + self.parts.backlog.unfinished,
            arrival_records_per_s=lag.arrival_records_per_s,
            service_records_per_s=compute.service_rate.records_per_s,
        )

    def reconfigure(self, batching: BatchingSettings, raw: RawSettings, predict: PredictSettings) -> None:
        """Use other limits and pipeline arguments from the next window on. No record is dropped. Raises ValueError."""
        now = self._settings
        fixed = {"model", "revision", "dtype"}
        if any(getattr(predict, name) != getattr(now.predict, name) for name in fixed):
            raise ValueError("predict.model, revision and dtype cannot change on a running replica; deploy anew")
        if raw.model_dump(exclude=RAW_CHANGES) != now.raw.model_dump(exclude=RAW_CHANGES):
            raise ValueError(f"of raw only {' and '.join(sorted(RAW_CHANGES))} can change on a running replica")
        if batching.max_window_items > now.intake.max_buffered_items:
            raise ValueError("batching.max_window_items may not exceed intake.max_buffered_items")
        if predict.mode == "sampled" and not now.one_model:
            raise ValueError(ONE_MODEL)
        self.parts.compute.reconfigure(batching, raw, predict)
