"""`twinlens demo`: starts broker, Ray, application and a stream of real tweets on this machine."""

from __future__ import annotations

import itertools
import json as jsonlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from twinlens.broker.feed import read_lines
from twinlens.demo.application import ROLLED_OUT, TWEETS, Scenario, running
from twinlens.demo.session import DemoSession
from twinlens.errors import AskUser
from twinlens.serving.cluster import terminate_like_ctrl_c


def demo(
    duration: Annotated[
        float | None, typer.Option(min=1, help="Stream for this many seconds (default: until Ctrl-C).")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Tweets per second; 0: as fast as possible.")] = 200,
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="none: both paths as configured; precision: the predict path in bfloat16; truncation: the predict "
            "path cut at 16 tokens; rollout: no difference at first, then cut, like a bad deployment."
        ),
    ] = Scenario.PRECISION,
    source: Annotated[
        Path | None,
        typer.Option(help="Your own tweets, one JSON object per line; streamed once, or repeatedly with --duration."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on the last line.")
    ] = False,
) -> None:
    """Show twinlens at work: real tweets, both paths, and how they diverge. Needs no Kafka and no GPU.

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
    with running(scenario, console) as (settings, handle, deploy):
        session = DemoSession(settings, handle, console, started)
        if scenario is Scenario.ROLLOUT:
            session.change_at(duration / 2 if duration else 30.0, lambda: deploy(ROLLED_OUT))
        summary = session.run(stream, rate=rate, duration_s=duration)
        console.print(_sentence(summary), highlight=False, soft_wrap=True)
    if json:
        typer.echo(jsonlib.dumps(summary))


def _sentence(summary: dict[str, Any]) -> str:
    rate, low, high = (
        100 * summary[name] for name in ("divergence_rate", "divergence_rate_low", "divergence_rate_high")
    )
    compared = f"the {summary['published'] - summary['derived']:,} compared" if summary["derived"] else "them"
    return (
        f"{summary['produced']:,} tweets produced, {summary['published']:,} published on both topics, "
        f"{summary['dead_lettered']:,} dead letters, {summary['missing']:,} missing, {summary['duplicate']:,} twice.\n"
        f"The paths diverge on {rate:.2f} % of {compared} (95 %: {low:.2f} to {high:.2f}): "
        f"{summary['label_divergences']:,} labels, {summary['score_divergences']:,} scores. "
        f"Alerts: {summary['alerts']}.\n"
        f"{summary['tweets_per_s']:,.0f} tweets/s; latency {summary['latency_p50_s']:.2f} s (p50), "
        f"{summary['latency_p99_s']:.2f} s (p99); first result after {summary['first_result_s']:.1f} s."
    )
