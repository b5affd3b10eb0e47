"""The only wiring point: settings in, Ray Serve application out.

`build` is what a Serve config file names in `import_path`. The application has two deployments: `Replica`, scaled by
Serve, each one a member of the consumer group with its own copy of the model; and `Monitor`, always one, which is the
ingress and serves the API.
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
from twinlens.settings import BatchingSettings, PredictSettings, RawSettings, Settings

HEALTH: dict[str, Any] = {"health_check_period_s": 2, "health_check_timeout_s": 30}


@serve.deployment(
    name="Replica",
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=8,
    graceful_shutdown_timeout_s=60,
    **HEALTH,
)
class ReplicaDeployment:
    """Ray's side of `replica.replica.Replica`."""

    def __init__(self, settings: Settings) -> None:
        configure_logging()
        self._settings = settings
        threads = settings.torch_threads or _assigned_cpus()
        # Read by libgomp and tokenizers when they are loaded, so this comes before the import of torch below.
        # Threads beyond the replica's CPUs, or threads that spin while they wait, cost a factor of ten.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch  # noqa: PLC0415

        from twinlens.replica.replica import new_replica  # noqa: PLC0415

        torch.set_num_threads(threads)
        context = serve.get_replica_context()
        # A replica that replaces another gets its rank, and so as a static member its partitions, without a rebalance.
        instance_id = f"{settings.application}-{context.rank.rank}" if settings.kafka.static_membership else None
        self._replica = new_replica(
            settings.with_secrets(),
            f"{settings.application}-{context.replica_id.unique_id}",
            instance_id,
            ReplicaMetrics(),
        )
        self._replica.start()
        # Ray's worker turns SIGTERM into sys.exit, without the drain that calls __del__.
        atexit.register(self._replica.stop)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """What may change on a running replica: `batching`, pipeline arguments, batch limits of both paths."""
        sections = {"batching": BatchingSettings, "raw": RawSettings, "predict": PredictSettings}
        if unknown := set(user_config) - set(sections):
            raise ValueError(f"user_config may hold batching, raw and predict, not {', '.join(sorted(unknown))}")
        now = self._settings.model_dump(include=set(sections))
        changes = {name: dict(user_config.get(name) or {}) for name in sections}
        changes["predict"] = PredictSettings.with_present_names(changes["predict"])
        self._replica.reconfigure(**{name: kind(**{**now[name], **changes[name]}) for name, kind in sections.items()})

    def check_health(self) -> None:
        """Raises when the replica has to be replaced."""
        self._replica.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, where there is an `autoscaling_config`, for `twinlens.autoscaling.LagPolicy`."""
        return dataclasses.asdict(await asyncio.to_thread(self._replica.autoscaling_stats))

    async def __del__(self) -> None:
        """Called by Serve after the drain: finish and commit the windows in hand."""
        if hasattr(self, "_replica"):
            await asyncio.to_thread(self._replica.stop)


@serve.deployment(name="Monitor", num_replicas=1, ray_actor_options={"num_cpus": 0}, **HEALTH)
@serve.ingress(api)
class MonitorDeployment:
    """Ray's side of `monitor.monitor.Monitor`, and the application's HTTP API."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle[Any]) -> None:
        configure_logging()
        self._monitor = MonitorBody(settings.with_secrets())
        self._monitor.start()

    def check_health(self) -> None:
        """Raises when the monitor has to be replaced."""
        self._monitor.check_health()

    def view(self) -> bytes:
        """`monitor.view.View` as JSON, for callers with a handle."""
        return bytes(json_response(self._monitor.view(now_ms())).body)

    @api.get("/api/view")
    def get_view(self) -> Response:
        """Summary, lag and the newest diverging tweets."""
        return json_response(self._monitor.view(now_ms()))

    def __del__(self) -> None:
        if hasattr(self, "_monitor"):
            self._monitor.stop()


def build(args: dict[str, Any] | None = None) -> Application:
    """The Serve application of the settings tree `args`, overridden by the environment. AskUser when it is wrong."""
    return application(Settings.load(args))


def application(settings: Settings, **replica_options: Any) -> Application:
    """The Serve application; `replica_options` are those of `serve.deployment` for the replicas."""
    # Ray keeps what is bound, in its own store and beyond a change of passwords: each process reads secrets itself.
    settings = settings.without_secrets()
    replicas = ReplicaDeployment.options(**replica_options).bind(settings)  # type: ignore[attr-defined]
    return MonitorDeployment.bind(settings, replicas)  # type: ignore[attr-defined, no-any-return]


def _assigned_cpus() -> int:
    """CPUs that Ray gave this replica; at least 1, as a replica with a fraction of one still needs a thread."""
    import ray  # noqa: PLC0415

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))
