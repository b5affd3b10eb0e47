"""A replica in a process of its own that dies, or stops, in the middle of a commit. Run as a program:

    python -m tests.integration.doomed SETTINGS_JSON WAY POINT SIGNAL

`way` is how it publishes: `transaction`, the real one; `plain_sends` (at_least_once: no transaction at all); or
`offsets_outside` (outputs in a transaction, offsets committed after it). `point` is where it sends itself the signal:
`after_sends`, `after_offsets` or `after_commit`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from tests.support.replicas import assigned, wait_until
from twinlens.broker.publisher import AtLeastOncePublisher, TransactionalPublisher
from twinlens.replica.replica import new_replica
from twinlens.settings import Settings


def main(settings: Settings, way: str, point: str, number: signal.Signals) -> None:
    torch.set_num_threads(1)
    points: dict[str, Callable[[], None]] = {
        name: lambda: None for name in ("after_sends", "after_offsets", "after_commit")
    }
    points[point] = lambda: os.kill(os.getpid(), number)
    if way == "plain_sends":
        _after(AtLeastOncePublisher, "publish", points["after_sends"])
    replica = new_replica(settings, "doomed")
    if way != "plain_sends":
        publisher = replica.parts.publisher
        assert isinstance(publisher, TransactionalPublisher)
        producer = publisher.producer
        real_offsets, real_commit = producer.send_offsets_to_transaction, producer.commit_transaction

        def send_offsets(*arguments: Any) -> None:
            producer.flush(timeout=10)
            points["after_sends"]()
            if way == "transaction":
                real_offsets(*arguments)

        def commit() -> None:
            points["after_offsets"]()
            real_commit()
            points["after_commit"]()

        producer.send_offsets_to_transaction, producer.commit_transaction = send_offsets, commit
        if way == "offsets_outside":
            replica.parts.publishing.commit_outside = True
    asked_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    replica.start()
    wait_until(lambda: bool(assigned(replica)), "partitions assigned", 60)
    print("ready", flush=True)
    asked_to_stop.wait(300)
    replica.stop()


def _after(owner: type, name: str, then: Callable[[], None]) -> None:
    real = getattr(owner, name)

    def both(*arguments: Any) -> None:
        real(*arguments)
        then()

    setattr(owner, name, both)


if __name__ == "__main__":
    main(Settings.load(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3], signal.Signals[sys.argv[4]])
