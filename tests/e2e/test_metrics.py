"""What Prometheus would see of a running application."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Callable

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Deployed, new_settings
from tests.support.replicas import lines, produce, wait_until
from twinlens.window.window import Reason

Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape(application: str) -> Samples:
    """The application's samples by metric, from every node of the Ray cluster."""
    found: Samples = defaultdict(list)
    for node in ray.nodes():
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("application") == application:
                    found[sample.name.removeprefix("ray_twinlens_")].append((sample.labels, sample.value))
    return found


def total(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples[name])


@pytest.fixture
def deployed(deploy: Callable[..., Deployed], broker: str) -> Deployed:
    return deploy(new_settings(broker, batching={"max_window_items": 50}))


@pytest.mark.slow
def test_every_window_is_explained(deployed: Deployed) -> None:
    application = deployed.settings.application
    poison = [(None, b"\xff", [])]
    sent = produce(deployed.settings, [(None, line, []) for line in lines(300)] + poison)
    wait_until(lambda: total(scrape(application), "published_tweets_total") == sent - 1, "exported")
    samples = scrape(application)
    assert total(samples, "dead_letters_total") == 1
    windows = total(samples, "windows_total")
    assert windows >= sent / 50
    assert {labels["reason"] for labels, _ in samples["windows_total"]} <= {reason.value for reason in Reason}
    for histogram in ("window_records", "queue_delay_seconds", "publish_seconds"):
        assert total(samples, f"{histogram}_count") == windows
    assert total(samples, "predicted_compute_seconds_total") > 0
    assert 0 < total(samples, "forward_seconds_total") < total(samples, "compute_seconds_total")  # one CPU: in turn
    assert {labels["outcome"] for labels, _ in samples["windows_total"]} == {"published"}
    for path in ("raw", "predict"):
        of_path = {name: [pair for pair in pairs if pair[0].get("path") == path] for name, pairs in samples.items()}
        assert 300 * 3 < total(of_path, "tokens_total") < 300 * 128
        assert total(of_path, "padding_tokens_total") < total(of_path, "tokens_total")
        assert total(of_path, "predicted_forward_seconds_total") > 0
        assert {labels["term"] for labels, _ in of_path["cost_coefficient"]} == {"c0", "c1", "c2"}
        assert len(of_path["cost_relative_error"]) == 1
