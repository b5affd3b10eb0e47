"""Deploys a Serve config file and watches its applications. Ray is imported late, because that takes a second."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

from twinlens.errors import AskUser

LOOPBACK = "127.0.0.1"
#: A deployment with a dead thread reports only that its health check failed. The same problem also keeps the next
#: replica from starting, and after a few tries that replica reports the reason.
UNHEALTHY_S = 60.0


def deploy_config(schema: dict[str, Any], say: Callable[[str], None]) -> None:
    """Deploy a config file as `serve run` does (ray/serve/scripts.py) and wait until every application runs.

    Unlike `serve.run`, it does not restart replicas if only `user_config` has changed in their deployment. Raises
    AskUser if an application cannot be deployed.
    """
    import ray.serve._private.api as private  # noqa: PLC0415 - there is no public call that takes a config file
    from ray.serve.config import ProxyLocation  # noqa: PLC0415
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

    schema["http_options"] = {"host": LOOPBACK, "port": 8000, **(schema.get("http_options") or {})}
    try:
        config = ServeDeploySchema.model_validate(schema)
    except ValueError as error:
        raise AskUser(f"The config file is no Ray Serve config: {' '.join(str(error).split())}.") from None
    client = private.serve_start(
        http_options=config.http_options.model_dump(), proxy_location=ProxyLocation(config.proxy_location)
    )
    client.deploy_apps(config, _blocking=False)
    _wait_until_running([each.name for each in config.applications], say)


def _wait_until_running(names: list[str], say: Callable[[str], None]) -> None:
    from ray import serve as ray_serve  # noqa: PLC0415

    said = ""
    healthy_at = dict.fromkeys(names, time.monotonic())
    while True:
        applications = ray_serve.status().applications
        states = {name: applications[name].status for name in names if name in applications}
        for name, state in states.items():
            if state != "UNHEALTHY":
                healthy_at[name] = time.monotonic()
            if reason := failure_of(name, applications[name], time.monotonic() - healthy_at[name]):
                raise AskUser(reason)
        if len(states) == len(names) and all(state == "RUNNING" for state in states.values()):
            return
        if (line := ", ".join(f"{name} {state.lower()}" for name, state in states.items())) != said:
            say(line)
            said = line
        time.sleep(0.2)


def failure_of(name: str, application: Any, unhealthy_s: float) -> str | None:
    """Why an application will not run; None while it may still start."""
    messages = " ".join([application.message, *(d.message for d in application.deployments.values())])
    if reason := reason_in(messages):
        return reason
    if application.status == "DEPLOY_FAILED" or unhealthy_s > UNHEALTHY_S:
        return f"The application {name} could not be deployed: {messages.strip()[-2000:]}"
    return None


def watch_applications(names: list[str], say: Callable[[str], None]) -> NoReturn:
    """Report when an application stops running and when it runs again, until interrupted."""
    from ray import serve as ray_serve  # noqa: PLC0415

    said = dict.fromkeys(names, "RUNNING")
    while True:
        time.sleep(2)
        for name, application in ray_serve.status().applications.items():
            if said.get(name, application.status) != application.status:
                said[name] = application.status
                messages = " ".join(d.message for d in application.deployments.values() if d.message)
                why = reason_in(messages) or messages or application.message
                hint = "" if application.status == "RUNNING" else " (--verbose shows the replicas' logs)"
                say(" ".join(f"{name} {application.status.lower()} {why}".split()) + hint)


def reason_in(message: str) -> str | None:
    """The message of an AskUser that was raised in another process and is part of a traceback in `message`."""
    found = re.search(r"AskUser: (.+)", message)
    return found.group(1).strip() if found else None
