"""Autoscaling on lag, seen on a running cluster."""

from __future__ import annotations

from typing import Any

import pytest
from ray import serve

from tests.e2e.conftest import new_settings
from tests.support.replicas import committed, lines, produce, published, wait_until
from twinlens.audit import audit
from twinlens.records import decode_comparison
from twinlens.serving.config import LAG_POLICY
from twinlens.serving.deploy import deploy_config
from twinlens.settings import Settings

ONE_BY_ONE = {"max_batch_items": 1}  #: slow, so that a small burst takes long
EAGER = {
    "min_replicas": 1,
    "max_replicas": 3,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 2,
    "look_back_period_s": 5,
    "metrics_interval_s": 0.5,
    "policy": {"policy_function": LAG_POLICY, "policy_kwargs": {"drain_target_s": 5}},
}


def config(settings: Settings) -> dict[str, Any]:
    """A Serve config file for `settings`, scaled by the lag."""
    name = settings.application
    args = {
        "application": name,
        "topics": {"input": name},
        "kafka": {"bootstrap_servers": settings.kafka.bootstrap_servers, "session_timeout_ms": 3000},
        "torch_threads": 1,
        "raw": ONE_BY_ONE,
        "predict": ONE_BY_ONE,
        "batching": {"max_window_items": 64},
    }
    replica = {"name": "Replica", "ray_actor_options": {"num_cpus": 1}, "autoscaling_config": EAGER}
    application = {"name": name, "route_prefix": f"/{name}", "import_path": "twinlens.app:build", "args": args}
    return {"applications": [{**application, "deployments": [replica]}]}


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_a_burst_is_drained_by_more_replicas_and_then_one_is_left(kafka: str, http_port: int) -> None:
    """On a real Kafka: the embedded broker does not get a group of several members through a rebalance."""
    settings = new_settings(kafka, partitions=3)
    name = settings.application

    def running() -> int:
        return serve.status().applications[name].deployments["Replica"].replica_states.get("RUNNING", 0)

    try:
        deploy_config(config(settings), print)
        assert running() == 1
        sent = produce(settings, [(str(n).encode(), line, []) for n, line in enumerate(lines(1800))])
        wait_until(lambda: running() == 3, "three replicas", 90)
        wait_until(lambda: committed(settings) >= sent, "the burst is drained", 90)
        wait_until(lambda: running() == 1, "one replica is left", 90)
        report = audit(settings)
        assert report.clean
        assert report.published == sent
        comparisons = published(settings, "comparisons")["comparisons"]
        assert len({decode_comparison(record.value).replica for record in comparisons}) == 3
    finally:
        serve.delete(name)
