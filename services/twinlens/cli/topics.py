"""`twinlens topics`: create and describe the topics."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from twinlens.broker import topics
from twinlens.broker.client import asking_user, new_admin
from twinlens.cli.options import AppOption, BrokersOption, ConfigOption, load_settings

app = typer.Typer(help="Create and describe the topics.", no_args_is_help=True)


@app.command()
def create(
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the input topic, if it is created.")] = 4,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each partition.")] = 1,
) -> None:
    """Create the missing topics. Outputs get as many partitions as the input has.

    Example: twinlens topics create -b kafka:9092 --partitions 12 --replication 3
    """
    settings = load_settings(config, bootstrap_servers, app_name)
    created = topics.create(settings, partitions, replication)
    typer.echo(f"created: {', '.join(created)}" if created else "all topics exist already")
    topics.check(settings)


@app.command()
def describe(config: ConfigOption = None, bootstrap_servers: BrokersOption = None, app_name: AppOption = None) -> None:
    """Show the topics. Exit code 2 if one is missing or not co-partitioned.

    Example: twinlens topics describe -c deploy/serve.yaml
    """
    settings = load_settings(config, bootstrap_servers, app_name)
    admin = new_admin(settings.kafka)
    try:
        with asking_user(settings.kafka):
            states = topics.describe(admin, settings)
    finally:
        admin.close()
    table = Table("topic", "partitions", "replication")
    for state in states:
        table.add_row(state.name, str(state.partitions or "missing"), str(state.replication or ""))
    Console().print(table)
    topics.check(settings)
