"""`twinlens demo`: broker, Ray, application and a stream of real tweets, on this machine, with one command."""

from __future__ import annotations

import contextlib
import itertools
import json as jsonlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from twinlens.broker import topics
from twinlens.broker.embedded import embedded_broker
from twinlens.cli.options import terminate_like_ctrl_c
from twinlens.cli.produce import read_lines
from twinlens.cli.serve import IMPORT_PATH, deploy_config
from twinlens.cli.session import DemoSession
from twinlens.cluster import free_port, local_cluster
from twinlens.errors import AskUser
from twinlens.settings import Settings, own_variables

TWEETS = Path(__file__).parent.parent / "data" / "demo-tweets" / "tweets.jsonl"
PARTITIONS = 4
SESSION_TIMEOUT_MS = 3_000  #: the embedded broker lets the first member join after part of it
Deploy = Callable[[dict[str, Any]], None]  #: with another `user_config`
ROLLED_OUT = {"predict": {"truncation": True, "max_length": 16}}


class Scenario(StrEnum):
    """What differs between the two paths."""

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


def demo(
    duration: Annotated[
        float | None, typer.Option(min=1, help="Seconds of streaming; without it until Ctrl-C.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Tweets per second; 0 is as fast as they go.")] = 200,
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="none: both paths as configured; precision: the predict path in bfloat16; truncation: the predict "
            "path cut at 16 tokens; rollout: clean at first, then cut, as by a bad deployment."
        ),
    ] = Scenario.PRECISION,
    source: Annotated[
        Path | None,
        typer.Option(help="Other tweets, one JSON object per line; streamed once, or again and again for --duration."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on the last line.")
    ] = False,
) -> None:
    """See twinlens at work: real tweets, both paths, and how they diverge. Needs neither Kafka nor a GPU.

    Example: twinlens demo

    Example: twinlens demo --duration 30 --rate 200 --scenario rollout

    Example: twinlens demo --source my-tweets.jsonl --rate 0 --json
    """
    started = time.monotonic()
    terminate_like_ctrl_c()
    console = Console(stderr=json)
    lines = list(read_lines(str(source or TWEETS)))
    if not lines:
        raise AskUser(f"The file {source} has no lines.")
    stream = iter(lines) if source and duration is None else itertools.cycle(lines)
    with _application(scenario, console) as (settings, handle, deploy):
        session = DemoSession(settings, handle, console, started)
        if scenario is Scenario.ROLLOUT:
            session.change_at(duration / 2 if duration else 30.0, lambda: deploy(ROLLED_OUT))
        summary = session.run(stream, rate=rate, duration_s=duration)
        console.print(_sentence(summary), highlight=False, soft_wrap=True)
    if json:
        typer.echo(jsonlib.dumps(summary))


@contextlib.contextmanager
def _application(scenario: Scenario, console: Console) -> Iterator[tuple[Settings, Any, Deploy]]:
    """Broker, topics, Ray and the application, with a word on what takes time; all gone afterwards."""
    with contextlib.ExitStack() as stack:
        with console.status("starting the embedded broker") as status:
            address = stack.enter_context(embedded_broker())
            settings = demo_settings(scenario, address)
            topics.create(settings, PARTITIONS, 1)
            status.update("starting Ray")
            config = serve_config(settings, free_port())
            stack.enter_context(local_cluster(_cpus()))
            from ray import serve  # noqa: PLC0415 - takes a second; `twinlens --help` need not wait for it

            def deploy(user_config: dict[str, Any]) -> None:
                config["applications"][0]["deployments"][0]["user_config"] = user_config
                deploy_config(config, lambda line: status.update(f"starting the application: {line}"))

            deploy({})
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        console.print(f"broker {address}, {url}/api/view, scenario {scenario}", style="dim", highlight=False)
        yield settings, serve.get_app_handle(settings.application), deploy


def demo_settings(scenario: Scenario, address: str) -> Settings:
    """The scenario's settings against the broker at `address`; the environment may change all others."""
    settings = Settings.load(OVERRIDES[scenario])
    local = {"bootstrap_servers": address, "session_timeout_ms": SESSION_TIMEOUT_MS, "security_protocol": "PLAINTEXT"}
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=local)})


def serve_config(settings: Settings, port: int) -> dict[str, Any]:
    """The Serve config file of the demonstration; one replica with all CPUs. To be made before Ray is started."""
    for name in own_variables(os.environ):
        del os.environ[name]  # `settings` has it; the cluster must not read it again and prefer it to the broker here
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


def _sentence(summary: dict[str, Any]) -> str:
    rate, low, high = (
        100 * summary[name] for name in ("divergence_rate", "divergence_rate_low", "divergence_rate_high")
    )
    compared = f"the {summary['published'] - summary['derived']:,} audited" if summary["derived"] else "them"
    return (
        f"{summary['produced']:,} tweets produced, {summary['published']:,} published on both topics, "
        f"{summary['dead_lettered']:,} dead letters, {summary['missing']:,} missing, {summary['duplicate']:,} twice.\n"
        f"The paths diverge on {rate:.2f} % of {compared} (95 %: {low:.2f} to {high:.2f}): "
        f"{summary['label_divergences']:,} labels, {summary['score_divergences']:,} scores. "
        f"Alerts: {summary['alerts']}.\n"
        f"{summary['tweets_per_s']:,.0f} tweets/s; latency {summary['latency_p50_s']:.2f} s (p50), "
        f"{summary['latency_p99_s']:.2f} s (p99); first result after {summary['first_result_s']:.1f} s."
    )
