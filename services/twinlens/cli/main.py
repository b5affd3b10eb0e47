"""The command line: one file per command in this folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from twinlens import __version__
from twinlens.cli import audit, demo, dlq, doctor, produce, serve, topics, watch
from twinlens.errors import AskUser
from twinlens.logs import configure_logging

app = typer.Typer(
    name="twinlens",
    help="Run one model in two ways, the call and the pipeline, on a Kafka stream, and compare the results.\n\n"
    "Start with [bold]twinlens demo[/bold]: it needs no Kafka and no GPU.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(serve.serve)
app.command()(produce.produce)
app.add_typer(topics.app, name="topics")
app.command()(audit.audit)
app.add_typer(dlq.app, name="dlq")
app.command()(watch.watch)
app.command()(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"twinlens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. AskUser becomes a message and exit code 2; Ctrl-C gives exit code 130."""
    configure_logging()
    try:
        app()
    except AskUser as error:
        typer.echo(f"twinlens: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
