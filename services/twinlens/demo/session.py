"""One run of the demo: send the stream, show the view, wait for the last tweet, audit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live

from twinlens.audit import Report, audit
from twinlens.broker.feed import feed, new_feed_producer
from twinlens.dashboard.terminal import render
from twinlens.errors import AskUser
from twinlens.monitor.summary import ALL
from twinlens.monitor.view import View
from twinlens.settings import Settings
from twinlens.threads import WatchedThread

LOOK_EVERY_S = 0.5
SAY_EVERY_S = 5.0  #: between two lines of output if there is no terminal
MAX_AHEAD = 2_048  #: records; at full speed the feed is at most this far ahead of what was published
STALLED_S = 90.0  #: without progress for this long, the demo stops waiting


class DemoSession:
    """Sends the stream from a separate thread, and shows the view in the caller's. `started` is a monotonic time."""

    def __init__(self, settings: Settings, handle: Any, console: Console, started: float) -> None:
        self._settings = settings
        self._handle = handle
        self._console = console
        self._started = started
        self._stop = threading.Event()
        self._sent = 0
        self._done = 0  # tweets and dead letters that the monitor has counted
        self._first_result_s: float | None = None
        self._changes: list[tuple[float, Callable[[], Any]]] = []
        self._threads: list[WatchedThread] = []

    def change_at(self, seconds: float, change: Callable[[], Any]) -> None:
        """Call `change` after the stream has run for `seconds`."""
        self._changes.append((seconds, change))

    def run(self, lines: Iterable[bytes], *, rate: float, duration_s: float | None) -> dict[str, Any]:
        """Stream until `lines` or `duration_s` end, or until Ctrl-C. Returns the summary (see README)."""
        feeding = WatchedThread("feed", lambda: self._feed(lines, rate, duration_s))
        self._threads.append(feeding)
        with self._screen() as show:
            feeding.start()
            start = time.monotonic()
            try:
                while not feeding.join(LOOK_EVERY_S):
                    self._make_changes(time.monotonic() - start)
                    show(self._look(), f"streaming, {self._sent:,} produced (Ctrl-C ends)")
            except KeyboardInterrupt:
                self._stop.set()
                feeding.join(10.0)
            view = self._drain(show)
        with self._console.status("auditing"):
            return self._summary(view, audit(self._settings))

    def _feed(self, lines: Iterable[bytes], rate: float, duration_s: float | None) -> None:
        end = time.monotonic() + duration_s if duration_s else float("inf")
        producer = new_feed_producer(self._settings.kafka)

        def go_on(sent: int) -> bool:
            self._sent = sent
            while rate == 0 and sent - self._done > MAX_AHEAD and not self._stop.is_set() and time.monotonic() < end:
                self._stop.wait(0.02)
            return not self._stop.is_set() and time.monotonic() < end

        try:
            topic = self._settings.topics.input
            self._sent = feed(producer, topic, lines, rate=rate, key_field=self._settings.intake.id_field, go_on=go_on)
        finally:
            producer.close(timeout=5)

    def _drain(self, show: Callable[[View, str], None]) -> View:
        """Wait until the monitor has counted every record that was sent."""
        progress, moved = -1, time.monotonic()
        while True:
            view = self._look()
            show(view, f"{self._sent:,} produced, waiting for the last ones")
            if self._done >= self._sent:
                return view
            if self._done != progress:
                progress, moved = self._done, time.monotonic()
            elif time.monotonic() - moved > STALLED_S:
                return view  # the audit reports what is missing
            time.sleep(LOOK_EVERY_S)

    def _look(self) -> View:
        for thread in self._threads:
            if isinstance(thread.error, AskUser):
                raise thread.error
            thread.check()
        view = msgspec.json.decode(self._handle.view.remote().result(timeout_s=30), type=View)
        window = view.summary.windows[ALL]
        self._done = window.published + sum(window.refused.values())
        if self._done and self._first_result_s is None:
            self._first_result_s = time.monotonic() - self._started
        return view

    def _make_changes(self, elapsed_s: float) -> None:
        """Start the changes that are due, in separate threads, so that the screen does not stop meanwhile."""
        for change in [each for each in self._changes if each[0] <= elapsed_s]:
            self._changes.remove(change)
            thread = WatchedThread("deployment", change[1])
            self._threads.append(thread)
            thread.start()

    @contextmanager
    def _screen(self) -> Iterator[Callable[[View, str], None]]:
        """A live screen on a terminal; elsewhere a line every `SAY_EVERY_S`."""
        if self._console.is_terminal:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                yield lambda view, status: live.update(render(view, status), refresh=True)
            self._console.print(render(self._look()))
            return
        said = [0.0]

        def say(view: View, status: str) -> None:
            if time.monotonic() - said[0] >= SAY_EVERY_S:
                said[0] = time.monotonic()
                window = view.summary.windows[ALL]
                counted = f"{window.published:,} published, {window.tally.tweets:,} compared"
                self._console.print(f"{status}; {counted}, {window.tally.diverging:,} diverging", highlight=False)

        yield say

    def _summary(self, view: View, report: Report) -> dict[str, Any]:
        window = view.summary.windows[ALL]
        return {
            "produced": self._sent,
            "published": report.published,
            "derived": report.derived,
            "dead_lettered": report.dead_lettered,
            "missing": report.missing + max(0, self._sent - report.consumed),
            "duplicate": report.duplicate,
            "label_divergences": report.label_divergences,
            "score_divergences": report.score_divergences,
            "one_sided": report.one_sided,
            "divergence_rate": window.tally.rate or 0.0,
            "divergence_rate_low": window.tally.low,
            "divergence_rate_high": window.tally.high,
            "monitor_tweets": window.published,
            "monitor_diverging": window.tally.diverging,
            "tweets_per_s": window.tweets_per_s or 0.0,
            "latency_p50_s": window.latency_s["p50"] or 0.0,
            "latency_p99_s": window.latency_s["p99"] or 0.0,
            "first_result_s": self._first_result_s or 0.0,
            "alerts": len(view.summary.alerts),
        }
