"""The proxy of the chaos suite, against a server that sends every frame back."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy
from tests.support.apache_kafka import free_ports
from tests.support.replicas import wait_until

NODE = 1
MUCH_S = 20.0
LITTLE_S = 0.2


class Echo(socketserver.ThreadingTCPServer):
    """Answers a request with its correlation id and body, and remembers both."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while size := self.rfile.read(4):
            request = self.rfile.read(int.from_bytes(size, "big"))
            self.server.seen.append(request[8:])
            self.wfile.write(struct.pack(">i", len(request) - 4) + request[4:])


class Client:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=MUCH_S)
        self._number = 0
        self.port = self._socket.getsockname()[1]

    def send(self, body: bytes, api_key: int = 0) -> None:
        self._number += 1
        self._socket.sendall(struct.pack(">ihhi", 8 + len(body), api_key, 0, self._number) + body)

    def answer(self, timeout_s: float = MUCH_S) -> bytes:
        """The next answer's body; b"" where the connection was cut."""
        self._socket.settimeout(timeout_s)
        try:
            return self._exactly(int.from_bytes(self._exactly(4), "big"))[4:]
        except ConnectionError:
            return b""

    def _exactly(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size and (more := self._socket.recv(size - len(taken))):
            taken += more
        return taken

    def ask(self, body: bytes, api_key: int = 0) -> bytes:
        self.send(body, api_key)
        return self.answer()

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Echo, Proxy, int]]:
    (port,) = free_ports(1)
    with echo() as server, Proxy([(NODE, port, server.server_address[1])]) as proxy:
        yield server, proxy, port


@pytest.fixture
def network(running: tuple[Echo, Proxy, int]) -> Iterator[tuple[Echo, Proxy, Client, Client]]:
    server, proxy, port = running
    server.seen.clear()
    with contextlib.closing(Client(port)) as one, contextlib.closing(Client(port)) as other:
        assert (one.ask(b"first"), other.ask(b"x" * 300_000)) == (b"first", b"x" * 300_000)
        yield server, proxy, one, other
    proxy.disarm()


Setup = tuple[Echo, Proxy, Client, Client]


def test_a_request_is_cut_before_it_is_forwarded(network: Setup) -> None:
    server, proxy, one, other = network
    proxy.trap(END_TXN, "request")
    assert one.ask(b"offsets", TXN_OFFSET_COMMIT) == b"offsets"
    assert one.ask(b"commit", END_TXN) == b""
    assert other.ask(b"commit again", END_TXN) == b"commit again"  # once was asked for
    assert b"commit" not in server.seen
    assert proxy.sprung() == [(END_TXN, "request", one.port)]


def test_an_answer_is_cut_after_the_broker_has_acted(network: Setup) -> None:
    server, proxy, one, other = network
    proxy.trap(END_TXN, "answer", times=2)
    one.send(b"before", TXN_OFFSET_COMMIT)
    one.send(b"commit", END_TXN)
    assert one.answer() == b"before"
    assert one.answer() == b""
    assert other.ask(b"another", END_TXN) == b""
    assert {b"commit", b"another"} <= set(server.seen)


def test_a_held_request_arrives_after_its_sender_has_died(network: Setup) -> None:
    server, proxy, one, other = network
    proxy.trap(END_TXN, "hold")
    one.send(b"late", END_TXN)
    wait_until(lambda: proxy.sprung() == [(END_TXN, "hold", one.port)], "the request is held")
    one.close()
    assert other.ask(b"others go on", END_TXN) == b"others go on"
    assert b"late" not in server.seen
    proxy.disarm()
    wait_until(lambda: b"late" in server.seen, "the request arrives")


def test_all_connections_of_a_broker_are_dropped(network: Setup) -> None:
    _, proxy, one, other = network
    assert proxy.drop(NODE) == 2
    assert (one.answer(), other.answer()) == (b"", b"")


def test_a_black_hole_takes_everything_and_lets_it_go_later(network: Setup, running: tuple[Echo, Proxy, int]) -> None:
    server, proxy, one, _ = network
    with proxy.black_hole(NODE), contextlib.closing(Client(running[2])) as new:
        one.send(b"lost?")
        new.send(b"new")
        with pytest.raises(TimeoutError):
            one.answer(LITTLE_S)
        assert not {b"lost?", b"new"} & set(server.seen)
    assert one.answer() == b"lost?"
    wait_until(lambda: b"new" in server.seen, "the new connection goes on")


def test_a_delayed_frame_still_comes(network: Setup) -> None:
    _, proxy, one, _ = network
    with proxy.delayed(2 * LITTLE_S):
        one.send(b"slow")
        with pytest.raises(TimeoutError):
            one.answer(LITTLE_S)
        assert one.answer() == b"slow"
    assert one.ask(b"quick") == b"quick"


def test_a_client_of_a_broker_that_is_away_is_turned_away() -> None:
    port, nobody = free_ports(2)
    with Proxy([(NODE, port, nobody)]), contextlib.closing(Client(port)) as client:
        assert client.answer() == b""
