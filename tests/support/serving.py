"""Serving applications that are built in the test itself, by `serve.run`."""

from __future__ import annotations

from typing import Any

from ray import serve

from twinlens.serving.cluster import free_port


def start_http() -> int:
    """Start Serve's proxy on a free loopback port; returns the port."""
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    return port


def run(app: Any, name: str) -> Any:
    """Deploy `app` and wait until it runs; returns its handle."""
    return serve.run(app, name=name, route_prefix="/", logging_config={"log_level": "WARNING"})
