"""Builds the Ray Serve application from the settings. This is the only place that connects all parts.

A Serve config file names `build` in `import_path`. The application has two deployments. `Replica` is scaled by Serve;
each replica is a member of the consumer group and has its own copy of the model. `Monitor` always has one replica. It
is the ingress and serves the API.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import os
from typing import Any

from fastapi import Response
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from twinlens.clock import now_ms
from twinlens.dashboard.api import api, json_response
from twinlens.logs import configure_logging
from twinlens.monitor.monitor import Monitor as MonitorBody
from twinlens.serving.metrics import ReplicaMetrics
from twinlens.settings import BatchingSettings, PredictSettings, RawSettings, Settings, with_present_names

HEALTH: dict[str, Any] = {"health_check_period_s": 2, "health_check_timeout_s": 30}


@serve.deployment(
    name="Replica",
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=8,
    graceful_shutdown_timeout_s=60,
    **HEALTH,
)
class ReplicaDeployment:
    """The Ray Serve deployment of `replica.replica.Replica`."""

    def __init__(self, settings: Settings) -> None:
        configure_logging()
        self._settings = settings
        threads = settings.torch_threads or _assigned_cpus()
        # libgomp and tokenizers read these when they are loaded, so set them before the import of torch below.
        # More threads than the replica has CPUs, or threads that spin while they wait, make it ten times slower.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch  # noqa: PLC0415

        from twinlens.replica.replica import new_replica  # noqa: PLC0415

        torch.set_num_threads(threads)
        context = serve.get_replica_context()
        # A replica gets the rank of the one it replaces; a static member then gets its partitions, without a rebalance.
        instance_id = f"{settings.application}-{context.rank.rank}" if settings.kafka.static_membership else None
        self._replica = new_replica(
            settings.with_secrets(),
            f"{settings.application}-{context.replica_id.unique_id}",
            instance_id,
            ReplicaMetrics(),
        )
        self._replica.start()
        # On SIGTERM Ray's worker calls sys.exit, without the drain that would call __del__.
        atexit.register(self._replica.stop)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change a running replica: `batching`, the pipeline's arguments and the batch limits of both paths."""
        sections = {"batching": BatchingSettings, "raw": RawSettings, "predict": PredictSettings}
        if unknown := set(user_config) - set(sections):
            raise ValueError(f"user_config may hold batching, raw and predict, not {', '.join(sorted(unknown))}")
        now = self._settings.model_dump(include=set(sections))
        changes = {name: dict(user_config.get(name) or {}) for name in sections}
        changes["predict"] = with_present_names(changes["predict"])
        self._replica.reconfigure(**{name: kind(**{**now[name], **changes[name]}) for name, kind in sections.items()})

    def check_health(self) -> None:
        """Raises an exception if the replica must be replaced."""
        self._replica.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Statistics for `twinlens.autoscaling.LagPolicy`. Serve calls it if there is an `autoscaling_config`."""
        return dataclasses.asdict(await asyncio.to_thread(self._replica.autoscaling_stats))

    async def __del__(self) -> None:
        """Finish and commit the current windows. Serve calls it after the drain."""
        if hasattr(self, "_replica"):
            await asyncio.to_thread(self._replica.stop)


@serve.deployment(name="Monitor", num_replicas=1, ray_actor_options={"num_cpus": 0}, **HEALTH)
@serve.ingress(api)
class MonitorDeployment:
    """The Ray Serve deployment of `monitor.monitor.Monitor`, with the HTTP API of the application."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle[Any]) -> None:
        configure_logging()
        self._monitor = MonitorBody(settings.with_secrets())
        self._monitor.start()

    def check_health(self) -> None:
        """Raises an exception if the monitor must be replaced."""
        self._monitor.check_health()

    def view(self) -> bytes:
        """`monitor.view.View` as JSON, for callers with a Serve handle."""
        return bytes(json_response(self._monitor.view(now_ms())).body)

    @api.get("/api/view")
    def get_view(self) -> Response:
        """Summary, lag and the newest diverging tweets."""
        return json_response(self._monitor.view(now_ms()))

    def __del__(self) -> None:
        if hasattr(self, "_monitor"):
            self._monitor.stop()


def build(args: dict[str, Any] | None = None) -> Application:
    """The Serve application for the settings `args`; the environment overrides them. AskUser if they are wrong."""
    return application(Settings.load(args))


def application(settings: Settings, **replica_options: Any) -> Application:
    """The Serve application. `replica_options` are options of `serve.deployment` for the replicas."""
    # Ray stores what is bound and keeps it, even after a change of passwords. So each process reads the secrets itself.
    settings = settings.without_secrets()
    replicas = ReplicaDeployment.options(**replica_options).bind(settings)  # type: ignore[attr-defined]
    return MonitorDeployment.bind(settings, replicas)  # type: ignore[attr-defined, no-any-return]


def _assigned_cpus() -> int:
    """CPUs that Ray assigned to this replica, at least 1: with only a fraction of a CPU it still needs a thread."""
    import ray  # noqa: PLC0415

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))
