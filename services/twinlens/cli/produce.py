"""`twinlens produce`: send lines to the input topic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from twinlens.broker import topics
from twinlens.broker.feed import feed, new_feed_producer, read_lines
from twinlens.cli.options import AppOption, BrokersOption, ConfigOption, load_settings


def produce(
    source: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One record per line; - is standard input.")],
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app: AppOption = None,
    topic: Annotated[str | None, typer.Option(help="Topic to send to (default: the input topic).")] = None,
    rate: Annotated[float, typer.Option(min=0, help="Records per second; 0: as fast as possible.")] = 0,
    key_field: Annotated[str | None, typer.Option(help="Field whose value becomes the record's key.")] = "id",
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many records.")] = None,
) -> None:
    """Send each line of a file, unchanged, as one record.

    Example: twinlens produce tweets.jsonl -b kafka:9092 --rate 500 --key-field user.id

    Example: zcat tweets.jsonl.gz | twinlens produce - --limit 10000
    """
    settings = load_settings(config, bootstrap_servers, app)
    lines = read_lines(source)
    total = limit if source == "-" else min(_count_lines(Path(source)), limit or sys.maxsize)
    target = topic or settings.topics.input
    topics.check_allowed(settings.kafka, target, "Write")
    producer = new_feed_producer(settings.kafka)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"producing to {target}", total=total)

            def go_on(sent: int) -> bool:
                progress.update(task, completed=sent)
                return limit is None or sent < limit

            sent = feed(producer, target, lines, rate=rate, key_field=key_field, go_on=go_on)
            progress.update(task, completed=sent)
    finally:
        producer.close(timeout=10)
    typer.echo(f"produced {sent} records to {target}")


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return sys.maxsize  # a pipe can be read only once
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
