"""Defects of kafka-python that twinlens repairs, as kafka-python has them without the repair; no broker needed.

A test that fails here says that a repair is no longer needed. The others are in tests/integration/test_repairs.py, the
table of all in `twinlens.broker.repairs`.
"""

from __future__ import annotations

import gc
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import BrokerNotAvailableError, KafkaError, KafkaTimeoutError, RetriableError, UnknownBrokerIdError
from kafka.net.compat import KafkaNetClient
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport

from tests.unit.test_assignor import assign
from twinlens.broker import repairs
from twinlens.broker.publisher import BATCH_BYTES
from twinlens.broker.repairs import recordbatch
from twinlens.demo.embedded import embedded_broker
from twinlens.serving.cluster import free_port
from twinlens.window.item import OutgoingRecord

WITHIN_MS = 500  #: what clients get that cannot be made


def no_longer(does: str, then: str) -> str:
    return f"kafka-python no longer {does}: {then}"


def test_the_table_names_every_test_of_a_defect() -> None:
    folder = Path(__file__).parents[1]
    there = {
        (file, name)
        for file in ("unit", "integration")
        for name in re.findall(r"^def (test_\w+)", (folder / file / "test_repairs.py").read_text(), re.MULTILINE)
    }
    named = {
        ("unit" if unit else "integration", name)
        for unit, name in re.findall(r"(\(u\) )?`(test_\w+)`", repairs.__doc__ or "")
    }
    assert named == there - {("unit", "test_the_table_names_every_test_of_a_defect")}


def test_an_assignor_gives_a_disputed_partition_to_one_of_the_two() -> None:
    disputed = [{0, 1, 3}, {2, 4}, {3, 5}]  # as seen: the third was evicted, and the first has had 3 since then
    assert assign(disputed, CooperativeStickyAssignor()) == [{0, 1}, {2, 4}, {3, 5}], no_longer(
        "takes one of two claims for the truth", "remove `assign` of broker/repairs/assignor.py"
    )


@contextmanager
def speaking_no_tls() -> Iterator[int]:
    """The port of a listener that answers every connection with a line of text and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"this is no TLS\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


class Doomed:
    """A client that cannot be made; what is left of it ends with the block."""

    def __init__(self, port: int, **options: Any) -> None:
        self._clients: list[KafkaNetClient] = []
        self._options = {"bootstrap_servers": f"127.0.0.1:{port}", "bootstrap_timeout_ms": WITHIN_MS, **options}

    def make(self) -> None:
        KafkaAdminClient(kafka_client=self._client, **self._options)

    def _client(self, **configs: Any) -> KafkaNetClient:
        self._clients.append(KafkaNetClient(**configs))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()


def test_a_client_that_no_other_try_helps_tells_only_that_time_is_up() -> None:
    with (
        speaking_no_tls() as port,
        closing(Doomed(port, security_protocol="SSL")) as doomed,
        pytest.raises(KafkaError) as caught,
    ):
        doomed.make()
    assert type(caught.value) is KafkaTimeoutError, no_longer(
        "hides why a first connection fails", "remove `get_connection` and `_do_bootstrap` of repairs/connections.py"
    )


def test_a_client_that_cannot_be_made_leaves_a_thread() -> None:
    before = set(threading.enumerate())
    with closing(Doomed(free_port())) as doomed:
        with pytest.raises(KafkaTimeoutError):
            doomed.make()
        left = {thread.name for thread in set(threading.enumerate()) - before}
    assert any(name.startswith("kafka-io-") for name in left), no_longer(
        "leaves threads running", "remove `bootstrap` of broker/repairs/connections.py"
    )


def open_tls_sockets() -> list[ssl.SSLSocket]:
    return [each for each in gc.get_objects() if type(each) is ssl.SSLSocket and each.fileno() >= 0]


def test_a_socket_whose_handshake_fails_is_left_to_the_garbage_collector() -> None:
    before = open_tls_sockets()  # what other tests have left
    with speaking_no_tls() as port:
        doomed = Doomed(port, security_protocol="SSL")
        with closing(doomed), pytest.raises(KafkaTimeoutError) as caught:
            doomed.make()
        left = [each for each in open_tls_sockets() if each not in before]
    assert caught.value  # holds on to what the client has left
    assert left, no_longer(
        "leaves a socket open after a failed handshake",
        "remove what closes it in `_build_transport` of broker/repairs/connections.py",
    )


class Received:
    """A protocol, as transports know it."""

    _sensors = None

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


def test_what_is_read_together_with_the_end_of_a_connection_is_dropped() -> None:
    """As a broker refuses credentials: with an answer, and the end of the connection right after it."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with closing(NetworkSelector()) as net:
        received, transport = Received(), KafkaTCPTransport(net, near)
        transport.set_protocol(received)
        far.sendall(b"the reason")
        far.close()
        transport.resume_reading()
        for _ in range(10):
            net.poll(timeout_ms=100)
            if received.lost:
                break
    assert received.lost
    assert received.data == b"", no_longer(
        "drops what it reads last", "remove `_data_before_the_end` of broker/repairs/connections.py"
    )


def test_errors_that_pass_by_themselves_are_not_called_retriable() -> None:
    assert not issubclass(BrokerNotAvailableError, RetriableError), no_longer(
        "calls it permanent", "remove BrokerNotAvailableError from TRANSIENT of broker/client.py"
    )
    assert not issubclass(UnknownBrokerIdError, RetriableError), no_longer(
        "calls it permanent", "remove UnknownBrokerIdError from TRANSIENT of broker/client.py"
    )


def calls(action: Callable[[], object]) -> int:
    """Calls of Python functions that `action` makes in this thread."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_a_record_costs_a_send_of_its_own() -> None:
    """Calls instead of time, which a busy machine would make random."""
    window = [OutgoingRecord("batches", 0, b"%d" % number, b"x" * 300, []) for number in range(1_000)]
    with embedded_broker() as address:
        producer = KafkaProducer(bootstrap_servers=address, batch_size=BATCH_BYTES)
        with closing(producer):
            producer.partitions_for("batches")  # the first question for a topic takes a while
            theirs = calls(lambda: [producer.send(r.topic, r.value, r.key, r.headers, r.partition) for r in window])
            ours = calls(lambda: recordbatch.send(producer, window, BATCH_BYTES))
    assert theirs > 2 * ours, no_longer(
        f"takes much more calls per record ({theirs} to {ours} for {len(window)})",
        "measure again (tests/benchmarks/test_record_batches.py) whether broker/repairs/recordbatch.py is worth it",
    )
