"""The publish thread: one transaction per window, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

from twinlens.broker.intake import Intake
from twinlens.broker.publisher import Publisher, SourceOffset
from twinlens.clock import now_ms
from twinlens.errors import RedoWindow, ReplaceReplica
from twinlens.replica.counting import ComparedWindow
from twinlens.replica.handover import HandOver
from twinlens.replica.outputs import OutputWriter
from twinlens.replica.refusals import RefusalLimit, as_metadata
from twinlens.replica.report import WindowReport
from twinlens.replica.sizing import Sizing
from twinlens.window.backlog import Backlog
from twinlens.window.window import Window

log = structlog.get_logger(__name__)

MAX_REDONE = 12  #: aborted windows in a row, about 15 s, after which another replica is to try
LONGEST_PAUSE_S = 2.0  #: between two windows that could not be committed


class Publishing:
    """Commits what compute hands over. `run` is the thread's body.

    `sizing` learns how long a commit takes. `observe` gets every window that was published or must be read again. With
    `commit_outside` the intake thread commits the offsets after the outputs are published.
    """

    def __init__(
        self,
        *,
        handover: HandOver,
        backlog: Backlog,
        intake: Intake,
        publisher: Publisher,
        writer: OutputWriter,
        refusals: RefusalLimit,
        sizing: Sizing,
        commit_outside: bool,
        observe: Callable[[WindowReport], None],
    ) -> None:
        self._handover = handover
        self._backlog = backlog
        self._intake = intake
        self._publisher = publisher
        self._writer = writer
        self._refusals = refusals
        self._sizing = sizing
        self.commit_outside = commit_outside
        self._observe = observe

    def run(self) -> None:
        """Publish until compute has ended and its last window is out. Raises AskUser and ReplaceReplica."""
        redone = 0  # windows in a row that were this replica's and could not be committed
        try:
            while (done := self._handover.take()) is not None:
                try:
                    self.commit(done)
                except RedoWindow as reason:
                    if self._give_back(done, reason):
                        redone += 1
                        if redone >= MAX_REDONE:
                            sentence = f"{redone} windows in a row could not be committed: {reason}"
                            raise ReplaceReplica(sentence) from reason
                        time.sleep(min(0.05 * 2**redone, LONGEST_PAUSE_S))  # a broker in trouble gets a pause
                else:
                    redone = 0
                del done  # the backlog counts its bytes as free already, so release them before the next window comes
        finally:
            self._handover.close()

    def commit(self, done: ComparedWindow) -> None:
        """Publish a window and its offsets. Raises RedoWindow when it is no longer this replica's, or was aborted."""
        window = done.window
        if not self._backlog.current(window):
            raise RedoWindow("its partitions were revoked")
        start = time.perf_counter()
        refusals = self._refusals.after(window)
        offsets = {p: SourceOffset(offset, as_metadata(refusals[p])) for p, offset in window.next_offsets.items()}
        records = self._writer.records(done, now_ms())
        self._publisher.publish(records, offsets, lambda: self._claim(window))
        self._refusals.committed(refusals)
        publish_s = time.perf_counter() - start
        if self.commit_outside:
            self._intake.commit(window, offsets)
        else:
            self._backlog.finish(window)
        self._sizing.published(len(window.items), publish_s)
        self._report(done, publish_s)

    def _claim(self, window: Window) -> Any | None:
        """The group metadata, or None when the window is no longer this replica's. The order matters: see
        TransactionalPublisher.
        """
        metadata = self._intake.group_metadata()
        return metadata if metadata is not None and self._backlog.current(window) else None

    def _give_back(self, done: ComparedWindow, reason: RedoWindow) -> bool:
        """The window was not committed. Returns whether this replica still owned it, and so reads it again."""
        log.warning("window will be read again", window=done.window.number, reason=str(reason))
        self._report(done, None)
        abandoned = self._backlog.abandon(done.window)
        self._intake.read_again(abandoned)
        self._backlog.finish(done.window)
        return bool(abandoned)

    def _report(self, done: ComparedWindow, publish_s: float | None) -> None:
        """Report to the metrics. A failure there must not end the replica."""
        window = done.window
        tweets = len(done.comparison.verdicts)
        refused = len(window.items) - tweets
        try:
            self._observe(WindowReport(tweets, refused, window.dispatch, done.compute_s, publish_s, done.paths))
        except Exception:
            log.exception("a window was not reported")
