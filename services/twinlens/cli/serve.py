"""`twinlens serve`: run the application of a config file on Ray Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinlens.broker import access
from twinlens.serving.cluster import connected_cluster, local_cluster, terminate_like_ctrl_c
from twinlens.serving.config import IMPORT_PATH, check_autoscaling, read_config
from twinlens.serving.deploy import deploy_config, watch_applications
from twinlens.settings import Settings


def serve(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="Ray Serve config file; deploy/serve.yaml is an example.")
    ],
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Address of a running Ray cluster (default: start Ray here)."),
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show the logs of Ray and of the replicas.")] = False,
) -> None:
    """Run twinlens with your Kafka until Ctrl-C.

    The same file works with `serve deploy`. Settings come from its `args`; environment variables override them.

    Example: TWINLENS_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 twinlens serve -c deploy/serve.yaml
    """
    terminate_like_ctrl_c()
    schema = read_config(config)
    for each in schema["applications"]:
        if each.get("import_path") == IMPORT_PATH:
            settings = Settings.load(each.get("args") or {})
            check_autoscaling(each, settings)
            _check(settings)
    names = [each.get("name", "default") for each in schema["applications"]]
    cluster = local_cluster(verbose=verbose) if address is None else connected_cluster(address, verbose=verbose)
    with cluster:
        try:
            deploy_config(schema, lambda line: typer.echo(line, err=True))
            http = schema["http_options"]
            served = f"http://{http['host']}:{http['port']}"
            typer.echo(f"twinlens serves {', '.join(names)} at {served} (Ctrl-C stops it)", err=True)
            watch_applications(names, lambda line: typer.echo(line, err=True))
        except KeyboardInterrupt:
            typer.echo("stopping: replicas finish and commit their current windows", err=True)
        finally:
            from ray import serve as ray_serve  # noqa: PLC0415

            for name in set(names) & set(ray_serve.status().applications):
                ray_serve.delete(name)


def _check(settings: Settings) -> None:
    """Check what can be checked before the start: broker, topics, rights, models."""
    access.check_application(settings)
    from twinlens.paths.model import check_model  # noqa: PLC0415 - imports transformers

    for path in (settings.raw, settings.predict):
        check_model(*settings.model_of(path))
