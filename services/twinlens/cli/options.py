"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinlens.serving.config import read_application
from twinlens.settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Ray Serve config file whose `args` are the settings (see deploy/serve.yaml)."),
]
BrokersOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", "-b", help="Kafka brokers, host:port separated by commas."),
]
AppOption = Annotated[str | None, typer.Option("--app", help="Application in the config file, if it has several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")]


def load_settings(config: Path | None, brokers: str | None = None, app: str | None = None) -> Settings:
    """The settings of a command. The environment overrides the file, and the options override both."""
    settings = Settings.load(read_application(config, app)["args"] if config else {})
    if brokers:
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": brokers})
        settings = settings.model_copy(update={"kafka": kafka})
    return settings
