"""The application on real Ray Serve: counts, deaths and replacements."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from ray import cloudpickle, serve

from tests.e2e.conftest import Deployed, new_settings, pids
from tests.support.replicas import committed, lines, produce, wait_until
from twinlens import app as wiring
from twinlens import records
from twinlens.audit import audit
from twinlens.broker.reading import read_topics
from twinlens.cli.watch import fetch
from twinlens.serving.deploy import deploy_config
from twinlens.settings import Settings

Deploy = Callable[..., Deployed]


def feed(settings: Settings, count: int) -> int:
    return produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(count))])


@pytest.mark.slow
def test_a_killed_monitor_comes_back_with_the_same_counts(deploy: Deploy, broker: str) -> None:
    deployed = deploy(new_settings(broker, monitor={"snapshot_period_s": 0.5}))
    sent = feed(deployed.settings, 300)
    wait_until(lambda: deployed.tweets == sent, "all tweets counted")
    before = fetch(deployed.url).summary
    report = audit(deployed.settings)
    tally = before.windows["all"].tally
    assert report.clean
    assert (tally.tweets, tally.diverging) == (report.published, report.diverging)
    wait_until(lambda: fetch(deployed.url).snapshot.written_records == before.records, "a snapshot of all of them")

    (old,) = pids(f"ray::ServeReplica:{deployed.settings.application}:Monitor")
    os.kill(old, signal.SIGKILL)
    wait_until(
        lambda: pids(f"ray::ServeReplica:{deployed.settings.application}:Monitor") not in ([], [old]), "a new monitor"
    )
    wait_until(lambda: _caught_up(deployed), "the new monitor has read the topic")
    view = fetch(deployed.url)
    after = view.summary
    assert (view.snapshot.restored_from_ms is not None, view.snapshot.records_read) == (True, 0)
    assert msgspec.structs.replace(after, at_ms=0, windows={}) == msgspec.structs.replace(before, at_ms=0, windows={})
    assert after.windows["all"] == before.windows["all"]


def _caught_up(deployed: Deployed) -> bool:
    from twinlens.errors import AskUser

    try:
        return fetch(deployed.url).caught_up
    except AskUser:
        return False


@pytest.mark.slow
def test_two_applications_on_the_same_topics_do_not_mix(deploy: Deploy, broker: str) -> None:
    first = deploy(new_settings(broker, input_topic="shared"))
    second = deploy(new_settings(broker, input_topic="shared", predict={"max_length": 8}))
    sent = feed(first.settings, 150)
    wait_until(lambda: first.tweets == sent and second.tweets == sent, "both have counted every tweet")
    agreeing, diverging = (each.view()["summary"]["windows"]["all"]["tally"] for each in (first, second))
    assert agreeing["diverging"] == 0
    assert diverging["diverging"] > 20
    assert len(first.view()["recent"]) == 0
    for deployed in (first, second):
        report = audit(deployed.settings)
        assert report.clean
        assert (report.published, report.monitor_diverging) == (sent, report.diverging)


@pytest.mark.slow
def test_sigterm_finishes_and_commits_the_window_and_serve_starts_another(deploy: Deploy) -> None:
    deployed = deploy()
    sent = feed(deployed.settings, 1500)
    wait_until(lambda: committed(deployed.settings) > 0, "the first commit")
    title = f"ray::ServeReplica:{deployed.settings.application}:Replica"
    (old,) = pids(title)
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: old not in pids(title), "the old replica is gone")
    report = audit(deployed.settings)
    assert report.clean
    wait_until(lambda: deployed.tweets == sent, "another replica has gone on", 90)
    report = audit(deployed.settings)
    assert report.clean
    assert report.published == sent
    assert deployed.view()["summary"]["replayed"] == 0


@pytest.mark.kafka
@pytest.mark.slow
def test_rolling_restarts_and_scaling_lose_nothing(deploy: Deploy, kafka: str) -> None:
    """On a real Kafka: the embedded broker does not get a group of several members through a rebalance."""
    deployed = deploy(new_settings(kafka))
    sent = feed(deployed.settings, 800)
    deploy(deployed.settings, num_replicas=2)
    sent += feed(deployed.settings, 800)
    deploy(deployed.settings, num_replicas=1)
    wait_until(lambda: deployed.tweets == sent, "all tweets counted", 90)
    report = audit(deployed.settings)
    assert report.clean
    assert report.published == sent


class BreakableReplica(wiring.ReplicaDeployment.func_or_class):  # type: ignore[name-defined, misc]
    """The real deployment with a switch that kills its compute thread."""

    def break_compute(self) -> None:
        def broken(*_: Any) -> None:
            raise MemoryError("broken on purpose")

        self._replica.parts.backlog.candidates = broken


def breakable(settings: Settings, **options: Any) -> Any:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    deployment = serve.deployment(name="Replica", health_check_period_s=1, **options)(BreakableReplica)
    return wiring.MonitorDeployment.bind(settings, deployment.bind(settings))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dead_thread_makes_serve_replace_the_replica(deploy: Deploy) -> None:
    deployed = deploy(builder=breakable)
    title = f"ray::ServeReplica:{deployed.settings.application}:Replica"
    (old,) = pids(title)
    serve.get_deployment_handle("Replica", deployed.settings.application).break_compute.remote().result(timeout_s=30)
    wait_until(lambda: old not in pids(title) and len(pids(title)) == 1, "Serve has replaced the replica", 90)
    sent = feed(deployed.settings, 100)
    wait_until(lambda: deployed.tweets == sent, "the new one works", 90)


def logits_of(settings: Settings) -> list[records.LogitsRecord]:
    return [records.decode_logits(raw.value) for _, raw in read_topics(settings, [settings.topics.logits])]


@pytest.mark.slow
def test_user_config_changes_limits_and_the_pipeline_without_a_new_replica(broker: str, http_port: int) -> None:
    """By the way of a config file, as `twinlens serve` and `serve deploy` go it: serve.run starts new replicas."""
    settings = new_settings(broker)
    name = settings.application
    args = {
        "application": name,
        "topics": {"input": name},
        "kafka": {"bootstrap_servers": broker, "session_timeout_ms": 3000},
    }
    replica = {"name": "Replica", "num_replicas": 1, "ray_actor_options": {"num_cpus": 1}, "user_config": {}}
    application = {"name": name, "route_prefix": f"/{name}", "import_path": "twinlens.app:build", "args": args}
    title = f"ray::ServeReplica:{name}:Replica"
    try:
        deploy_config({"applications": [{**application, "deployments": [replica]}]}, print)
        before = pids(title)
        sent = feed(settings, 100)
        wait_until(lambda: committed(settings) >= sent, "the first half")
        first = [logits.source for logits in logits_of(settings)]
        changes = {"predict": {"max_length": 8}, "raw": {"max_batch_tokens": 64}, "batching": {"max_window_items": 20}}
        changed = {**replica, "user_config": changes}
        deploy_config({"applications": [{**application, "deployments": [changed]}]}, print)
        sent += feed(settings, 100)
        wait_until(lambda: committed(settings) >= sent, "the second half")
        assert pids(title) == before
        report = audit(settings)
        assert report.clean
        assert 20 < report.diverging < 100
        batches = [logits.batch for logits in logits_of(settings) if logits.source not in first and logits.batch]
        assert len(batches) == 100
        assert max(Counter(batch.window for batch in batches).values()) <= 20
        assert all(batch.size == 1 or batch.size * batch.padded_tokens <= 64 for batch in batches)
    finally:
        serve.delete(name)
