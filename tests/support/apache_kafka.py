"""A real Apache Kafka (KRaft, one broker or several) in a temporary folder, from the jars under `KAFKA_HOME`."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twinlens.demo.embedded import die_with_parent

START_DEADLINE_S = 90.0
PROPERTIES = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map={protocols}
log.dirs={folder}
default.replication.factor={replication}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""


def kafka_home() -> Path | None:
    """The folder named by `KAFKA_HOME`, if it holds a Kafka and there is a Java to run it."""
    home = os.environ.get("KAFKA_HOME")
    if home and list(Path(home, "libs").glob("kafka_*.jar")) and shutil.which("java"):
        return Path(home)
    return None


@dataclass(frozen=True)
class Listener:
    """One more way into every broker, beside `PLAINTEXT`. `advertised` are other ports (a proxy's) by node."""

    name: str
    protocol: str = "PLAINTEXT"
    advertised: Mapping[int, int] = field(default_factory=dict)


class Cluster:
    """Brokers, numbered from 1, each of which can be killed, stopped and started again on the same ports and data."""

    def __init__(
        self,
        home: Path,
        folder: Path,
        brokers: int,
        listeners: Sequence[Listener],
        properties: str,
        scram: Sequence[str],
    ) -> None:
        self._folder = folder
        self._java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{home}/libs/*"]
        self._listeners = [Listener("PLAINTEXT"), *listeners]
        self.nodes = range(1, brokers + 1)
        names = [*(listener.name for listener in self._listeners), "CONTROLLER"]
        free = iter(free_ports(brokers * len(names)))
        self.ports = {(node, name): next(free) for node in self.nodes for name in names}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for node in self.nodes:
            self._properties(node).write_text(self._text(node) + properties)
        self._format(scram)

    def bootstrap(self, listener: str = "PLAINTEXT") -> str:
        """`bootstrap.servers`: all brokers' own ports of a listener."""
        return ",".join(f"127.0.0.1:{self.ports[node, listener]}" for node in self.nodes)

    def start(self, *nodes: int) -> None:
        """Start brokers (all, if none is named) and wait until they serve. They die with the calling thread."""
        for node in nodes or self.nodes:
            with self._log(node).open("wb") as log:
                self._processes[node] = subprocess.Popen(
                    [*self._java, "kafka.Kafka", str(self._properties(node))],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd=self._folder,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509
                )
        for node in nodes or self.nodes:
            self._wait(node)

    def kill(self, *nodes: int) -> None:
        """`kill -9` of brokers (all, if none is named)."""
        self._end(signal.SIGKILL, nodes)

    def stop(self, *nodes: int) -> None:
        """A clean shutdown of brokers, leadership handed over."""
        self._end(signal.SIGTERM, nodes)

    def _end(self, how: signal.Signals, nodes: Sequence[int]) -> None:
        ending = [self._processes.pop(node) for node in nodes or self.nodes if node in self._processes]
        for process in ending:
            process.send_signal(how)
        for process in ending:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _properties(self, node: int) -> Path:
        return self._folder / f"{node}.properties"

    def _log(self, node: int) -> Path:
        return self._folder / f"{node}.log"

    def _text(self, node: int) -> str:
        controller = f"CONTROLLER://127.0.0.1:{self.ports[node, 'CONTROLLER']}"
        own = [f"{each.name}://127.0.0.1:{self.ports[node, each.name]}" for each in self._listeners]
        told = [
            f"{each.name}://127.0.0.1:{each.advertised.get(node, self.ports[node, each.name])}"
            for each in self._listeners
        ]
        return PROPERTIES.format(
            node=node,
            voters=",".join(f"{n}@127.0.0.1:{self.ports[n, 'CONTROLLER']}" for n in self.nodes),
            listeners=",".join([*own, controller]),
            advertised=",".join(told),
            protocols=",".join([*(f"{each.name}:{each.protocol}" for each in self._listeners), "CONTROLLER:PLAINTEXT"]),
            folder=self._folder / f"data-{node}",
            replication=min(3, len(self.nodes)),
            in_sync=2 if len(self.nodes) >= 3 else 1,
        )

    def _format(self, scram: Sequence[str]) -> None:
        # The first letter: the tool would take one that is a hyphen for an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        users = [argument for user in scram for argument in ("--add-scram", user)]
        for node in self.nodes:
            command = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties(node)), *users]
            done = subprocess.run(
                [*self._java, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
            assert done.returncode == 0, done.stdout.decode()

    def _wait(self, node: int) -> None:
        process, log = self._processes[node], self._log(node)
        deadline = time.monotonic() + START_DEADLINE_S
        while b"Kafka Server started" not in log.read_bytes():
            alive = process.poll() is None
            assert alive and time.monotonic() < deadline, log.read_text()[-3000:]  # noqa: PT018
            time.sleep(0.05)


@contextlib.contextmanager
def apache_kafka(
    home: Path, brokers: int = 1, *, listeners: Sequence[Listener] = (), properties: str = "", scram: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a cluster. Three brokers replicate everything thrice and acknowledge with two in sync.

    `properties` are lines for every broker; `scram` are users as Kafka's storage tool takes them (`--add-scram`).
    """
    folder = Path(tempfile.mkdtemp(prefix="twinlens-kafka-"))
    try:
        cluster = Cluster(home, folder, brokers, listeners, properties, scram)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Loopback ports, all different, that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
