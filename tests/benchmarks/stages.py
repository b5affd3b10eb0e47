"""Where a tweet's time goes: notes when it passes each stage of a replica, by looking on from within its process."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

#: Stages of a tweet, in order: what lies between each and the one before.
STAGES = (
    ("fetched", "sent, stored, fetched and unpacked"),
    ("waiting", "decoded, tokenized"),
    ("drawn", "waits for the compute thread, or until publish has taken the last window"),
    ("computed", "both paths, comparison"),
    ("publishing", "waits for the publish thread"),
    ("offered", "records made, handed to the client"),
    ("offsets", "AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit"),
    ("stored", "outputs acknowledged"),
    ("committed", "EndTxn"),
    ("visible", "markers written, fetched by the reader"),
)


class WindowTimes(msgspec.Struct):
    """Wall-clock seconds of one window; what a process writes is a line of JSON per window."""

    items: list[tuple[str, float, float, float]]  #: id, record timestamp, fetched, waiting
    at_s: dict[str, float]  #: the other stages
    retries: dict[str, int]  #: transactional requests that the broker put off, by kind


class _Watch:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._fetched_s = 0.0
        self._of_item: dict[tuple[int, int], tuple[float, float]] = {}
        self._open: dict[int, WindowTimes] = {}
        self._publishing = threading.local()
        self.retries: Counter[str] = Counter()

    def fetched(self, *_: Any) -> None:
        self._fetched_s = time.time()

    def waiting(self, _: Any, partition: tuple[str, int], epoch: int, items: Any) -> None:
        for item in items:
            self._of_item[partition[1], item.offset] = (self._fetched_s, time.time())

    def drawn(self, window: Any, *_: Any) -> None:
        if window is not None:
            at_s = time.time()
            items = [
                (item.id, item.timestamp_ms / 1000, *self._of_item.pop((item.partition, item.offset)))
                for item in window.items
            ]
            self._open[window.number] = WindowTimes(items, {"drawn": at_s}, {})

    def computed(self, compared: Any, *_: Any) -> None:
        self._open[compared.window.number].at_s["computed"] = time.time()

    def publishing(self, _: Any, done: Any) -> None:
        self._publishing.window = self._open[done.window.number]
        self.retries.clear()
        self.note("publishing")

    def published(self, _: Any, __: Any, done: Any) -> None:
        window = self._open.pop(done.window.number)
        window.retries = dict(self.retries)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(window) + b"\n")

    def note(self, stage: str, *_: Any) -> None:
        """Of the window that this thread publishes; other producers have threads of their own."""
        window = getattr(self._publishing, "window", None)
        if window is not None:
            window.at_s[stage] = time.time()


def watch(path: str) -> None:
    """Called in a replica's process."""
    from kafka import KafkaProducer
    from kafka.producer.transaction_manager import TxnRequestHandler

    from twinlens.broker.intake import Intake
    from twinlens.replica.inference import Inference
    from twinlens.replica.publishing import Publishing
    from twinlens.window.backlog import Backlog

    seen = _Watch(Path(path))
    _before(Intake, "hand_over", seen.fetched)
    _before(Backlog, "fill", seen.waiting)
    _after(Backlog, "draw", seen.drawn)
    _after(Inference, "run", seen.computed)
    _before(Publishing, "commit", seen.publishing)
    _after(Publishing, "commit", seen.published)
    _before(KafkaProducer, "send_offsets_to_transaction", functools.partial(seen.note, "offered"))
    _before(KafkaProducer, "flush", functools.partial(seen.note, "offsets"))
    _before(KafkaProducer, "commit_transaction", functools.partial(seen.note, "stored"))
    _after(KafkaProducer, "commit_transaction", functools.partial(seen.note, "committed"))
    _before(TxnRequestHandler, "reenqueue", lambda handler: seen.retries.update([type(handler).__name__]))


def _before(owner: type, name: str, look: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        look(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, observed)


def _after(owner: type, name: str, look: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        look(result, *args, **kwargs)
        return result

    setattr(owner, name, observed)
