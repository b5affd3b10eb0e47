"""A real Apache Kafka (KRaft, one broker) in a temporary folder, from the jars under `KAFKA_HOME`."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from twinlens.broker.embedded import die_with_parent

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
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


@contextlib.contextmanager
def apache_kafka(home: Path) -> Iterator[str]:
    """Run a broker; yields its `host:port`."""
    folder = Path(tempfile.mkdtemp(prefix="twinlens-kafka-"))
    port, controller = _free_ports(2)
    properties = folder / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller=controller, folder=folder))
    java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{home}/libs/*"]
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster.startswith("-"):
        cluster = f"A{cluster[1:]}"  # the tool would take it for an option
    log = (folder / "broker.log").open("wb")
    subprocess.run([*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)], check=True,
                   stdout=log, stderr=log)  # fmt: skip
    process = subprocess.Popen(
        [*java, "kafka.Kafka", str(properties)],
        stdout=log,
        stderr=log,
        cwd=folder,
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )
    try:
        _wait(process, port, folder / "broker.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while b"Kafka Server started" not in log.read_bytes():
        alive = process.poll() is None
        assert alive and time.monotonic() < deadline, log.read_text()[-3000:]  # noqa: PT018
        time.sleep(0.05)
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=5)):
        return


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
