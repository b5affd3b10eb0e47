"""`twinlens watch`: the live view of a running application."""

from __future__ import annotations

import http.client
import json as jsonlib
import time
import urllib.error
import urllib.request
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from twinlens.cli.options import JsonOption
from twinlens.dashboard.terminal import render
from twinlens.errors import AskUser
from twinlens.monitor.view import View


def watch(
    url: Annotated[str, typer.Option(help="URL of the running application.")] = "http://127.0.0.1:8000",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates.")] = 1.0,
    once: Annotated[bool, typer.Option(help="Show it once and exit.")] = False,
    json: JsonOption = False,
) -> None:
    """Show rate, lag, latency, agreement and the newest diverging tweets of a running application.

    Example: twinlens watch --url http://twinlens-serve-svc:8000
    """
    if json:
        typer.echo(jsonlib.dumps(jsonlib.loads(_get(url))))
        return
    console = Console()
    if once:
        console.print(render(fetch(url)))
        return
    with Live(render(fetch(url)), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(render(fetch(url)), refresh=True)


def fetch(url: str) -> View:
    """Get the monitor's view over HTTP. Raises AskUser if there is none."""
    try:
        return msgspec.json.decode(_get(url), type=View)
    except msgspec.MsgspecError:
        raise AskUser(f"The server at {url} is not twinlens, or is another version of it.") from None


def _get(url: str) -> bytes:
    address = f"{url.rstrip('/')}/api/view"
    if not address.startswith(("http://", "https://")):
        raise AskUser(f"{url} is not an http address.")
    try:
        with urllib.request.urlopen(address, timeout=10) as response:  # noqa: S310 - the scheme is checked above
            return bytes(response.read())
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise AskUser(
            f"No twinlens answers at {address} ({reason}). Start it with `twinlens serve`, or give --url."
        ) from None
