"""One Ray for all tests of this folder, and applications that end with their test."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from tests.support.serving import start_http
from twinlens.app import application
from twinlens.broker import topics
from twinlens.demo.embedded import embedded_broker
from twinlens.serving.cluster import local_cluster
from twinlens.settings import Settings


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session")
def http_port() -> Iterator[int]:
    """Ray with enough logical CPUs for several applications; the port of its HTTP proxy."""
    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - Ray's name for it; its own is 10 s
    with local_cluster(8):
        yield start_http()


class Deployed:
    """A running application with its settings."""

    def __init__(self, settings: Settings, handle: Any, url: str) -> None:
        self.settings, self.handle, self.url = settings, handle, url

    def view(self) -> dict[str, Any]:
        return json.loads(self.handle.view.remote().result(timeout_s=60))

    @property
    def tweets(self) -> int:
        return self.view()["summary"]["windows"]["all"]["published"]


@pytest.fixture
def deploy(broker: str, http_port: int) -> Iterator[Callable[..., Deployed]]:
    names: list[str] = []

    def make(settings: Settings | None = None, builder: Any = application, **options: Any) -> Deployed:
        settings = settings or new_settings(broker)
        options = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}, **options}
        app = builder(settings, **options)
        handle = serve.run(app, name=settings.application, route_prefix=f"/{settings.application}")
        names.append(settings.application)
        return Deployed(settings, handle, f"http://127.0.0.1:{http_port}/{settings.application}")

    yield make
    for name in names:
        serve.delete(name, _blocking=False)  # Serve takes three seconds for it, in which the next test can begin


def new_settings(broker: str, *, input_topic: str | None = None, partitions: int = 2, **sections: Any) -> Settings:
    """Settings of an application of its own; its topics exist."""
    name = f"app-{uuid.uuid4().hex[:8]}"
    kafka = {"bootstrap_servers": broker, "session_timeout_ms": 3000}
    settings = Settings.load(
        {"application": name, "kafka": kafka, "topics": {"input": input_topic or name}, **sections}
    )
    topics.create(settings, partitions, 1)
    return settings


def pids(title: str) -> list[int]:
    """Processes whose command line holds `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if title.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
