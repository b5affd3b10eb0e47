"""The benchmarks' producer offers its load whatever the broker does."""

from __future__ import annotations

import socket
import threading

from tests.benchmarks.wire import Wire

DEADLINE_S = 5.0


def test_it_does_not_wait_for_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        wire = Wire(f"{host}:{port}", "tweets")
        sending = threading.Thread(target=lambda: [wire.send(0, [(1, b"tweet")]) for _ in range(3)], daemon=True)
        sending.start()
        sending.join(DEADLINE_S)
        stuck = sending.is_alive()
        wire.close()
        assert not stuck
