"""`twinlens audit`: an independent check that no tweet is missing or published twice."""

from __future__ import annotations

import sys

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from twinlens import audit as auditing
from twinlens.broker import topics
from twinlens.cli.options import AppOption, BrokersOption, ConfigOption, JsonOption, load_settings


def audit(
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app: AppOption = None,
    json: JsonOption = False,
) -> None:
    """Join the output topics by source coordinates and report missing, duplicate and diverging tweets.

    Reads every topic from its beginning. Tweets that the group has not committed yet are not counted. Exit code 1 if
    a tweet is missing or published twice.

    Example: twinlens audit -b kafka:9092 --json
    """
    settings = load_settings(config, bootstrap_servers, app)
    topics.check(settings, read=(settings.topics.input, *settings.topics.outputs))
    console = Console(stderr=True)
    with console.status("reading the topics"):
        report = auditing.audit(settings)
    if json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        _show(report)
    sys.exit(0 if report.clean else 1)


def _show(report: auditing.Report) -> None:
    console = Console()
    table = Table(show_header=False)
    for name in report.__struct_fields__:
        if name != "examples":
            table.add_row(name.replace("_", " "), f"{getattr(report, name):,}")
    console.print(table)
    for example in report.examples:
        console.print(
            f"{example['what']:>10}  {example['partition']}/{example['offset']}", example["raw"], example["predict"]
        )
    console.print("nothing missing, nothing twice" if report.clean else "[red]tweets are missing or duplicated[/red]")
