"""What is under test: three brokers, a proxy before each, and the application, which knows only the proxies."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from tests.chaos.proxy import Proxy
from tests.chaos.stream import MAX_TEXT_CHARS
from tests.e2e.conftest import pids
from tests.support.apache_kafka import Cluster, Listener, apache_kafka, free_ports
from tests.support.replicas import wait_until
from twinlens.broker import topics
from twinlens.broker.client import new_admin
from twinlens.errors import AskUser
from twinlens.serving.cluster import free_port, local_cluster
from twinlens.serving.config import IMPORT_PATH
from twinlens.serving.deploy import deploy_config
from twinlens.settings import Settings

PROXIED = "PROXIED"
PARTITIONS = 6
REPLICAS = 3
SESSION_TIMEOUT_S = 6.0
BROKERS = "broker.session.timeout.ms=4000"  # a killed broker's partitions get leaders sooner than after 9 s
DEPLOY_S = 120.0
CPUS = 8  #: logical ones, so that replacements never wait for room


@dataclass
class System:
    """The running parts, and what faults do to them. `settings` go by the direct listener."""

    cluster: Cluster
    proxy: Proxy
    settings: Settings
    args: dict[str, Any]  #: the application's settings
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, replicas: int = REPLICAS) -> None:
        """By the way of a config file: replicas that need not change stay. Again while Serve is in trouble."""
        deployments = [
            {"name": "Replica", "num_replicas": replicas, "ray_actor_options": {"num_cpus": 0.5}},
            {"name": "Monitor"},
        ]
        application = {
            "name": self.settings.application,
            "route_prefix": "/",
            "import_path": IMPORT_PATH,
            "args": self.args,
            "deployments": [{**each, "health_check_period_s": 1} for each in deployments],
        }
        http = {"host": "127.0.0.1", "port": self.port}
        logs = {"log_level": "WARNING"}
        config = {"applications": [application], "http_options": http, "logging_config": logs}
        wait_until(lambda: _deployed(config), "the application is deployed", DEPLOY_S)

    def processes(self, title: str) -> list[int]:
        """Our own Ray's processes with this title: others may run a Ray beside us."""
        return sorted(pid for pid in pids(f"ray::{title}") if _is_ours(pid))

    @property
    def replicas(self) -> list[int]:
        return self.processes(f"ServeReplica:{self.settings.application}:Replica")

    def owner(self, port: int) -> int | None:
        """The replica that holds the local end `port` of a TCP connection."""
        wanted = f"socket:[{_inode(port)}]"
        for pid in self.replicas:
            with contextlib.suppress(OSError):
                if any(str(link.readlink()) == wanted for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
        return None

    def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition."""
        admin = new_admin(self.settings.kafka)
        try:
            (described,) = admin.describe_topics([topic])
        finally:
            admin.close()
        leaders = {each["partition_index"]: each["leader_id"] for each in described["partitions"]}
        return int(leaders[partition])


@contextlib.contextmanager
def running_system(home: Path, model: Path, logs: Path | None = None) -> Iterator[System]:
    """Kafka, proxies, Ray and the application with `REPLICAS` replicas of `model`, until the block ends.

    `logs`: where to copy what the replicas have logged.
    """
    listening = dict(zip((1, 2, 3), free_ports(3), strict=True))
    name = f"chaos-{uuid.uuid4().hex[:6]}"
    with (
        apache_kafka(home, 3, listeners=[Listener(PROXIED, advertised=listening)], properties=BROKERS) as cluster,
        Proxy([(node, port, cluster.ports[node, PROXIED]) for node, port in listening.items()]) as proxy,
        local_cluster(CPUS),
    ):
        args = _args(name, model, ",".join(f"127.0.0.1:{port}" for port in listening.values()))
        settings = Settings.load({**args, "kafka": {"bootstrap_servers": cluster.bootstrap()}})
        topics.create(settings, PARTITIONS, 3)
        system = System(cluster, proxy, settings, args, free_port())
        try:
            system.deploy()
            yield system
        finally:
            if logs is not None:
                _save_logs(logs)


def _args(name: str, model: Path, bootstrap: str) -> dict[str, Any]:
    return {
        "application": name,
        "topics": {"input": name},
        "kafka": {
            "bootstrap_servers": bootstrap,
            "session_timeout_ms": int(SESSION_TIMEOUT_S * 1000),
            "transaction_timeout_ms": 10_000,
            "request_timeout_ms": 10_000,
        },
        "intake": {"max_text_chars": MAX_TEXT_CHARS},
        "batching": {"max_window_items": 128},
        "raw": {"model": str(model)},
        "predict": {"max_length": 24},  # so that there are divergences to count
        "output": {"commit_deadline_s": 20},
        "monitor": {"snapshot_period_s": 1},  # so that a killed one has one to go on from
    }


def _deployed(config: dict[str, Any]) -> bool:
    try:
        deploy_config(config, lambda _: None)
    except (AskUser, RayError):  # a replica or the controller was killed a moment ago
        return False
    return True


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == os.getpid()


def _inode(port: int) -> str:
    """Of the socket whose local end is this port; "" where there is none."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].rpartition(":")[2], 16) == port:
            return columns[9]
    return ""


def _save_logs(folder: Path) -> None:
    import ray._private.worker as worker

    shutil.copytree(worker._global_node.get_logs_dir_path(), folder, dirs_exist_ok=True)
