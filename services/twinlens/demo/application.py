"""Runs the application of the demo: broker, topics, Ray and twinlens, on this machine. All are removed afterwards."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console

from twinlens.broker import topics
from twinlens.demo.embedded import embedded_broker
from twinlens.serving.cluster import free_port, local_cluster
from twinlens.serving.config import IMPORT_PATH
from twinlens.serving.deploy import deploy_config
from twinlens.settings import Settings, own_variables

TWEETS = Path(__file__).parent.parent / "data" / "demo-tweets" / "tweets.jsonl"
PARTITIONS = 4
SESSION_TIMEOUT_MS = 3_000  #: the embedded broker waits a part of this before the first member can join
Deploy = Callable[[dict[str, Any]], None]  #: deploys again with another `user_config`
ROLLED_OUT = {"predict": {"truncation": True, "max_length": 16}}


class Scenario(StrEnum):
    """The difference between the two paths."""

    NONE = "none"
    PRECISION = "precision"
    TRUNCATION = "truncation"
    ROLLOUT = "rollout"


OVERRIDES: dict[Scenario, dict[str, Any]] = {
    Scenario.NONE: {},
    Scenario.PRECISION: {"predict": {"dtype": "bfloat16"}},
    Scenario.TRUNCATION: ROLLED_OUT,
    Scenario.ROLLOUT: {},
}


@contextlib.contextmanager
def running(scenario: Scenario, console: Console) -> Iterator[tuple[Settings, Any, Deploy]]:
    """Start broker, topics, Ray and the application, and show the progress. All are removed after the block."""
    with contextlib.ExitStack() as stack:
        with console.status("starting the embedded broker") as status:
            address = stack.enter_context(embedded_broker())
            settings = demo_settings(scenario, address)
            topics.create(settings, PARTITIONS, 1)
            status.update("starting Ray")
            config = serve_config(settings, free_port())
            stack.enter_context(local_cluster(_cpus()))
            from ray import serve  # noqa: PLC0415 - takes a second; `twinlens --help` should not wait for it

            def deploy(user_config: dict[str, Any]) -> None:
                config["applications"][0]["deployments"][0]["user_config"] = user_config
                deploy_config(config, lambda line: status.update(f"starting the application: {line}"))

            deploy({})
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        console.print(f"broker {address}, {url}/api/view, scenario {scenario}", style="dim", highlight=False)
        yield settings, serve.get_app_handle(settings.application), deploy


def demo_settings(scenario: Scenario, address: str) -> Settings:
    """The settings of the scenario, for the broker at `address`. The environment may change all other settings."""
    settings = Settings.load(OVERRIDES[scenario])
    local = {"bootstrap_servers": address, "session_timeout_ms": SESSION_TIMEOUT_MS, "security_protocol": "PLAINTEXT"}
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=local)})


def serve_config(settings: Settings, port: int) -> dict[str, Any]:
    """The Serve config of the demo, with one replica that has all CPUs. Call it before Ray is started."""
    for name in own_variables(os.environ):
        del os.environ[name]  # already in `settings`; the cluster must not read it and use another broker
    replica = {"name": "Replica", "num_replicas": 1, "ray_actor_options": {"num_cpus": _cpus()}, "user_config": {}}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"log_level": "WARNING"},
        "applications": [
            {
                "name": settings.application,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": settings.without_secrets().model_dump(mode="json"),
                "deployments": [replica],
            }
        ],
    }


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
