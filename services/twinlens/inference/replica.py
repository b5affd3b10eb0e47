"""One replica: a member of the consumer group with its own copy of the model. Three threads with bounded hand-overs,
and one that ends what dead members left open (`broker.recovery`):

    intake ──backlog──▶ compute ──one window──▶ publish
      ▲                                            │
      └───────── read again / commit ──────────────┘

Intake polls, decodes and tokenizes; compute draws a window, runs both paths and compares; publish commits it. A thread
that dies, or a call to Kafka that does not return, fails `check_health`, and Ray Serve starts another replica.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from twinlens.broker import access
from twinlens.broker.intake import Intake
from twinlens.broker.publisher import AtLeastOncePublisher, Publisher, SourceOffset, TransactionalPublisher
from twinlens.broker.recovery import Recovery, transactional_id
from twinlens.errors import RedoWindow, ReplaceReplica
from twinlens.inference.batching import CostModel, Limits, split, window_size
from twinlens.inference.compare import compare
from twinlens.inference.counting import ComparedWindow
from twinlens.inference.decoder import Decoder
from twinlens.inference.model import load_model, resolve_device
from twinlens.inference.noise import NoiseFloor
from twinlens.inference.observations import Observations
from twinlens.inference.outputs import OutputWriter
from twinlens.inference.predict import PredictPath
from twinlens.inference.raw import RawPath, RawTokenizer
from twinlens.inference.refusals import RefusalLimit, encode
from twinlens.settings import BatchingSettings, PathSettings, PredictSettings, Settings
from twinlens.threads import WatchedThread
from twinlens.window import Backlog, Item, Window

log = structlog.get_logger(__name__)

DRAW_TIMEOUT_S = 0.2
LEAVE_S = 10.0  #: for the intake thread to leave the group
MAX_REDONE = 12  #: aborted windows in a row, some 15 s, after which another replica shall try


@dataclass
class Paths:
    """Both paths with what the replica learns about their speed."""

    raw: RawPath
    predict: PredictPath
    raw_cost: CostModel
    predict_cost: CostModel
    seconds_per_token: float = 1e-4  #: both paths together, exponentially weighted; each window corrects it


class Replica:
    """Wires the stages together. `name` is unique among living replicas; `instance_id` makes it a static member."""

    def __init__(self, settings: Settings, name: str, instance_id: str | None = None) -> None:
        self.name = name
        self._settings = settings
        self._batching = settings.batching
        self._predict = settings.predict
        access.check_application(settings)
        device = resolve_device(settings.device)
        raw_model = load_model(*settings.model_of(settings.raw), settings.raw.dtype, device)
        same = (settings.model_of(settings.raw), settings.raw.dtype) == (
            settings.model_of(settings.predict),
            settings.predict.dtype,
        )
        predict_model = (
            raw_model if same else load_model(*settings.model_of(self._predict), self._predict.dtype, device)
        )
        self._paths = Paths(
            RawPath(raw_model, settings.raw), PredictPath(predict_model, self._predict), CostModel(), CostModel()
        )
        self._noise = NoiseFloor(settings.compare.noise_floor_share, random.Random(name))
        self._writer = OutputWriter(settings, name)
        self._backlog = Backlog(settings.intake.max_buffered_items, settings.intake.max_buffered_bytes)
        decoder = Decoder(settings, RawTokenizer(raw_model, settings.raw))
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
        self._compared: queue.Queue[ComparedWindow | None] = queue.Queue(maxsize=1)
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._stop_lock = threading.Lock()
        self._threads = [
            WatchedThread("intake", self._intake.run),
            WatchedThread("compute", self._compute),
            WatchedThread("publish", self._publish),
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

    def reconfigure(self, batching: BatchingSettings, predict: PredictSettings) -> None:
        """Take other window limits and pipeline arguments from the next window on; no record is dropped."""
        fixed = ("model", "revision", "dtype")
        if any(getattr(predict, name) != getattr(self._settings.predict, name) for name in fixed):
            raise ValueError("predict.model, revision and dtype cannot change on a running replica; deploy anew")

        def change() -> None:
            self._batching = batching
            if predict != self._predict:
                self._paths.predict.reconfigure(predict)
                self._predict = predict

        self._changes.put(change)

    def _compute(self) -> None:
        """The compute thread: draw, observe twice, compare, hand over; ends when stopped."""
        try:
            while not self._stopping:
                self._apply_changes()
                window = self._backlog.draw(self._take, self._batching.max_window_items, DRAW_TIMEOUT_S)
                if window is not None:
                    self._compared.put(self._run(window))
        finally:
            self._compared.put(None)

    def _publish(self) -> None:
        """The publish thread: one transaction per window, in order."""
        redone = 0  # windows in a row that were ours and could not be committed
        while (done := self._compared.get()) is not None:
            window = done.window
            try:
                self._commit(done)
            except RedoWindow as reason:
                log.warning("window will be read again", window=window.number, reason=str(reason))
                abandoned = self._backlog.abandon(window)
                self._intake.read_again(abandoned)
                self._backlog.finish(window)
                redone += bool(abandoned)
                if redone >= MAX_REDONE:
                    raise ReplaceReplica(f"{redone} windows in a row could not be committed: {reason}") from reason
                time.sleep(min(0.05 * 2**redone, 2.0) if abandoned else 0)  # a broker in trouble gets a pause
            else:
                redone = 0

    def _commit(self, done: ComparedWindow) -> None:
        """Publish a window and its offsets. Raises RedoWindow when it is no longer ours or was aborted."""
        window = done.window
        if not self._backlog.current(window):
            raise RedoWindow("its partitions were revoked")
        refusals = self._refusals.after(window)
        offsets = {p: SourceOffset(offset, encode(refusals[p])) for p, offset in window.next_offsets.items()}
        records = self._writer.records(done, now_ms=time.time_ns() // 1_000_000)
        self._publisher.publish(records, offsets, lambda: self._claim(window))
        self._refusals.committed(refusals)
        if self._commit_outside is None:
            self._backlog.finish(window)
        else:
            self._commit_outside(window, offsets)

    def _claim(self, window: Window) -> Any | None:
        metadata = self._intake.group_metadata()
        return metadata if is_member(metadata) and self._backlog.current(window) else None

    def _take(self, candidates: Sequence[Item]) -> int:
        """How many of the waiting items fit into what is left of the oldest one's latency objective."""
        age_s = max(0.0, time.time() - min(item.timestamp_ms for item in candidates) / 1000)
        budget_s = self._batching.latency_objective_ms / 1000 - age_s
        lengths = [max(item.token_count, 1) for item in candidates]
        return window_size(lengths, self._paths.seconds_per_token, budget_s)

    def _run(self, window: Window) -> ComparedWindow:
        start = time.perf_counter()
        tweets = window.tweets
        paths = self._paths
        lengths = [item.token_count for item in tweets]
        raw_limits = _limits(self._settings.raw, paths.raw.can_batch)
        raw = paths.raw.observe(tweets, split(lengths, paths.raw_cost, raw_limits))
        whole = [item.token_count + item.cut_tokens for item in tweets]
        most = paths.predict.max_tokens if self._predict.truncation else max(whole, default=0)
        shorter = [min(length, most) for length in whole]
        predict_limits = _limits(self._predict, paths.predict.can_batch)
        predict = paths.predict.observe(tweets, split(shorter, paths.predict_cost, predict_limits))
        for cost, batches in ((paths.raw_cost, raw.batches), (paths.predict_cost, predict.batches)):
            for batch in batches:
                cost.learn(batch.size, batch.padded_tokens, batch.seconds)
        self._noise.maybe_measure(paths.raw, tweets, raw)
        comparison = compare(raw, predict, self._settings.compare.score_tolerance, self._noise.floor)
        for path, seen in (("raw", raw), ("predict", predict)):
            self._log_errors(path, tweets, seen)
        seconds = time.perf_counter() - start
        if tokens := sum(lengths):
            paths.seconds_per_token += 0.2 * (seconds / tokens - paths.seconds_per_token)
        return ComparedWindow(window, raw, predict, comparison, seconds)

    def _log_errors(self, path: str, tweets: Sequence[Item], seen: Observations) -> None:
        """The first text of a window that made a path raise, and how many did; its text only under `log_text`."""
        rows = np.flatnonzero(seen.failed)
        if not rows.size:
            return
        item, error = tweets[rows[0]], seen.errors[rows[0]]
        at = f"{item.topic}/{item.partition}/{item.offset}"
        text = {"text": item.text} if self._settings.log_text else {}
        log.warning("a path raised", path=path, texts=int(rows.size), first=at, error=error, **text)

    def _apply_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get()()


def _limits(path: PathSettings, can_batch: bool) -> Limits:
    """Without a padding token texts go one by one, as the stock pipeline demands."""
    return Limits(path.max_batch_items if can_batch else 1, path.max_batch_tokens)


def is_member(metadata: Any) -> bool:
    """Whether group metadata names a member. Between an eviction and its callback it does not, and a broker that is
    handed such metadata checks nothing: the commit of somebody else's partitions would go through."""
    return metadata.generation_id >= 0 and bool(metadata.member_id)
