"""`twinlens doctor`: checks everything the application needs and says what to fix."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import typer
from rich.console import Console

from twinlens.broker import access
from twinlens.broker.client import new_admin
from twinlens.cli.options import (
    AppOption,
    BrokersOption,
    ConfigOption,
    load_settings,
)
from twinlens.errors import AskUser
from twinlens.serving.config import check_autoscaling, read_application
from twinlens.settings import Settings

OLDEST, NEWEST = (3, 11), (3, 13)


def doctor(config: ConfigOption = None, bootstrap_servers: BrokersOption = None, app: AppOption = None) -> None:
    """Check Python, Ray, device, settings, broker, topics and models. Exit code 2 if something is wrong.

    Example: twinlens doctor -c deploy/serve.yaml
    """
    console = Console()
    wrong = 0
    loaded: list[Settings] = []

    def check(name: str, look: Callable[[], str]) -> None:
        nonlocal wrong
        try:
            console.print(f"[green]ok[/green]     {name:10} {look()}", highlight=False)
        except AskUser as error:
            wrong += 1
            console.print(f"[red]wrong[/red]  {name:10} {error}", highlight=False)

    def settings() -> str:
        loaded.append(load_settings(config, bootstrap_servers, app))
        if config is not None:
            check_autoscaling(read_application(config, app), loaded[0])
        return f"application {loaded[0].application}, group {loaded[0].group_id}, {loaded[0].output.delivery}"

    check("Python", _python)
    check("Ray", _ray)
    check("settings", settings)
    if loaded:
        chosen = loaded[0]
        check("device", lambda: device_line(chosen))
        check("broker", lambda: _broker(chosen))
        check("topics", lambda: f"{access.check_application(chosen)} partitions of the input and each output")
        check("raw", lambda: _model(chosen, predict=False))
        check("predict", lambda: _model(chosen, predict=True))
    if wrong:
        typer.echo(f"{wrong} thing(s) to fix", err=True)
        sys.exit(2)


def _python() -> str:
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        raise AskUser(f"Python {platform.python_version()} is not supported; use 3.11, 3.12 or 3.13.")
    return platform.python_version()


def _ray() -> str:
    try:
        import ray  # noqa: PLC0415
        from ray import serve  # noqa: F401, PLC0415
    except ImportError as error:
        raise AskUser(f"Ray Serve cannot be imported ({error}); install ray[serve].") from None
    return str(ray.__version__)


def device_line(settings: Settings) -> str:
    """The device and, on a CPU, the number format that is fast on it."""
    import torch  # noqa: PLC0415

    from twinlens.paths.model import resolve_device  # noqa: PLC0415

    device = resolve_device(settings.device)
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise AskUser(
                "The setting `device` is cuda, but torch finds no GPU. Install a CUDA build or set it to auto."
            )
        return f"{device} ({torch.cuda.get_device_name(device)})"
    has_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    fast = "bfloat16 is fast here" if has_bfloat16 else "float32 is the fastest dtype here"
    return f"{device}, {torch.get_num_threads()} threads, {fast}"


def _broker(settings: Settings) -> str:
    admin = new_admin(settings.kafka)
    try:
        brokers = admin.describe_cluster()["brokers"]
    finally:
        admin.close()
    return f"{len(brokers)} broker(s) at {settings.kafka.bootstrap_servers}"


def _model(settings: Settings, *, predict: bool) -> str:
    from twinlens.paths.model import load_model  # noqa: PLC0415

    path = settings.predict if predict else settings.raw
    model = load_model(*settings.model_of(path), path.dtype, "cpu")
    labels = ", ".join(model.labels)
    return f"{model.id.name}@{model.id.revision}, {path.dtype}, labels {labels}, up to {model.max_tokens} tokens"
