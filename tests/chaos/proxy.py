"""A TCP proxy before Kafka brokers that knows their frames, in a process of its own: faults of the network, on purpose.

A request is int32 size, int16 api key, int16 api version, int32 correlation id, ...; an answer is int32 size, int32
correlation id, ... (https://kafka.apache.org/protocol). One command per line comes on standard input as JSON, one
answer per line goes to standard output; the process ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ADD_OFFSETS_TO_TXN = 25
END_TXN = 26
TXN_OFFSET_COMMIT = 28

REQUEST = struct.Struct(">ihhi")
ANSWER = struct.Struct(">ii")
CLOSED = (asyncio.IncompleteReadError, OSError)


@dataclass
class Trap:
    """What to do with the next requests of an API.

    `request`: cut the connection before the request is forwarded; `answer`: forward it, and cut the connection when
    the broker has answered, so that the client never knows; `hold`: keep the request until `release`, and forward it
    then even if the client has died.
    """

    api_key: int
    at: str
    times: int


@dataclass
class Broker:
    """One listening port and the faults in force on it."""

    port: int
    delay_s: float = 0.0
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[Connection] = field(default_factory=set)


class Network:
    """All brokers, and the traps, which any connection may fall into."""

    def __init__(self, brokers: Mapping[int, int]) -> None:
        self.brokers = {node: Broker(port) for node, port in brokers.items()}
        self.traps: list[Trap] = []
        self.sprung: list[tuple[int, str, int]] = []  # api key, where, port of the client
        self.released = asyncio.Event()
        for broker in self.brokers.values():
            broker.flows.set()

    def spring(self, api_key: int, client_port: int) -> str | None:
        """What is to happen to this request, if it falls into a trap."""
        for trap in self.traps:
            if trap.times and trap.api_key == api_key:
                trap.times -= 1
                self.sprung.append((api_key, trap.at, client_port))
                return trap.at
        return None

    def command(self, do: str, node: int | None = None, **arguments: Any) -> Any:
        """Run one command; its answer."""
        brokers = [self.brokers[node]] if node is not None else list(self.brokers.values())
        if do == "trap":
            self.released.clear()
            self.traps.append(Trap(**arguments))
        elif do == "sprung":
            return self.sprung
        elif do == "disarm":
            self.traps.clear()
            self.sprung.clear()
            self.released.set()
        elif do == "drop":
            dropped = [connection for broker in brokers for connection in broker.connections]
            for connection in dropped:
                connection.cut()
            return len(dropped)
        elif do == "delay":
            for broker in brokers:
                broker.delay_s = arguments["seconds"]
        elif do == "hole":
            for broker in brokers:
                broker.flows.clear() if arguments["on"] else broker.flows.set()
        else:
            raise ValueError(do)
        return None

    async def accept(self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until either side closes."""
        try:
            await broker.flows.wait()
            onward = await asyncio.open_connection("127.0.0.1", broker.port)
        except OSError:  # the broker is away
            writer.close()
            return
        connection = Connection(self, broker, (reader, writer), onward)
        broker.connections.add(connection)
        try:
            await connection.run()
        finally:
            broker.connections.discard(connection)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connection:
    """A client's connection and its twin to the broker."""

    def __init__(self, network: Network, broker: Broker, client: Streams, onward: Streams) -> None:
        self._network, self._broker = network, broker
        self._from_client, self._to_client = client
        self._from_broker, self._to_broker = onward
        self._client_port = self._to_client.get_extra_info("peername")[1]
        self._doomed: set[int] = set()  # correlation ids whose answers cut the connection

    async def run(self) -> None:
        answers = asyncio.create_task(self._answers())
        try:
            await self._requests()
            self._to_broker.write_eof()  # lets the broker take what was forwarded to the end
        except CLOSED:
            pass
        finally:
            await asyncio.wait([answers], timeout=1)
            answers.cancel()
            self.cut()

    def cut(self) -> None:
        for writer in (self._to_client, self._to_broker):
            with contextlib.suppress(OSError):
                writer.transport.abort()

    async def _requests(self) -> None:
        while frame := await read_frame(self._from_client):
            await self._pass()
            _, api_key, _, correlation = REQUEST.unpack_from(frame)
            fate = self._network.spring(api_key, self._client_port)
            if fate == "request":
                self.cut()
                return
            if fate == "answer":
                self._doomed.add(correlation)
            elif fate == "hold":
                await self._network.released.wait()
            self._to_broker.write(frame)
            await self._to_broker.drain()

    async def _answers(self) -> None:
        with contextlib.suppress(*CLOSED):
            while frame := await read_frame(self._from_broker):
                await self._pass()
                if ANSWER.unpack_from(frame)[1] in self._doomed:
                    break
                self._to_client.write(frame)
                await self._to_client.drain()
        self.cut()

    async def _pass(self) -> None:
        """Wait as long as the network is slow or lets nothing through."""
        await asyncio.sleep(self._broker.delay_s)
        await self._broker.flows.wait()


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """A frame with its size; None where the stream ends between two."""
    try:
        size = await reader.readexactly(4)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    return size + await reader.readexactly(int.from_bytes(size, "big"))


class Proxy:
    """The proxy's process, seen from the tests. `routes` are (node, port to listen on, port of the broker)."""

    def __init__(self, routes: Iterable[tuple[int, int, int]]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(list(routes))],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._lock = threading.Lock()
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(5)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def trap(self, api_key: int, at: str, times: int = 1) -> None:
        """See `Trap`."""
        self._ask(do="trap", api_key=api_key, at=at, times=times)

    def sprung(self) -> list[tuple[int, str, int]]:
        """(api key, where, port of the client) of each request that fell into a trap since the last `disarm`."""
        return [tuple(each) for each in self._ask(do="sprung")]

    def disarm(self) -> None:
        """Take all traps away and let go what is held."""
        self._ask(do="disarm")

    def drop(self, node: int) -> int:
        """Cut all connections of a broker; returns how many."""
        return self._ask(do="drop", node=node)

    @contextlib.contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """Within the block every frame, in both directions, comes so much later."""
        self._ask(do="delay", seconds=seconds)
        try:
            yield
        finally:
            self._ask(do="delay", seconds=0.0)

    @contextlib.contextmanager
    def black_hole(self, node: int) -> Iterator[None]:
        """Within the block connections to a broker are taken and nothing goes through; it goes on afterwards."""
        self._ask(do="hole", node=node, on=True)
        try:
            yield
        finally:
            self._ask(do="hole", node=node, on=False)

    def _ask(self, **command: Any) -> Any:
        with self._lock:
            self._process.stdin.write(json.dumps(command) + "\n")
            return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        assert line, f"the proxy has ended: {self._process.poll()}"
        return json.loads(line)


async def serve(routes: Iterable[tuple[int, int, int]]) -> None:
    routes = list(routes)
    network = Network({node: target for node, _, target in routes})
    for node, port, _ in routes:
        broker = network.brokers[node]
        await asyncio.start_server(lambda r, w, broker=broker: network.accept(broker, r, w), "127.0.0.1", port)
    print("null", flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(network.command(**json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
