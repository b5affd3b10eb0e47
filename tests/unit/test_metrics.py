"""The metrics' names are an interface: the docs hold them all, and no others. And each holds what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.observed import observed
from twinlens.paths.observations import Batch
from twinlens.replica.cost import CostModel
from twinlens.replica.report import PathWork, WindowReport
from twinlens.serving.metrics import PREFIX, ReplicaMetrics
from twinlens.window.window import Dispatch, Reason

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
DISPATCH = Dispatch(
    Reason.DEADLINE, queue_delay_s=0.3, predicted_s=0.4, overhead=1.5, publish_reserve_s=0.02, relative_error=0.1
)
RAW = PathWork(100, 130, 0.2, 0.25, (1e-3, 2e-5, 3e-8), 0.05)
PREDICT = PathWork(10, 10, 0.1, 0.11, (4e-3, 5e-5, 6e-8), 0.06)

Recorded = dict[tuple[str, ...], float]


def test_every_metric_is_documented_with_its_labels() -> None:
    table = OPERATIONS.read_text().split("## Metrics")[1]
    documented = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(\w+)` \| \w+ \| ([^|]*)\|", table, re.MULTILINE)
    }
    declared = {
        metric.info["name"].removeprefix(PREFIX): set(metric.info["tag_keys"])
        for metric in vars(ReplicaMetrics()).values()
    }
    assert documented == declared


@pytest.fixture
def record() -> Callable[[WindowReport], Recorded]:
    """What a report sets, adds or observes, by the metric's name and its tags."""
    metrics = ReplicaMetrics()
    found: Recorded = {}
    for metric in vars(metrics).values():

        def note(value: float, tags: dict[str, str] | None = None, name: str = metric.info["name"]) -> None:
            found[(name.removeprefix(PREFIX), *(tags or {}).values())] = value

        for verb in ("inc", "set", "observe"):
            if hasattr(metric, verb):
                setattr(metric, verb, note)

    def report(what: WindowReport) -> Recorded:
        found.clear()
        metrics(what)
        return dict(found)

    return report


def test_a_published_window(record: Any) -> None:
    paths = {"raw": RAW, "predict": PREDICT}
    assert record(WindowReport(7, 2, DISPATCH, compute_s=0.5, publish_s=0.03, paths=paths)) == {
        ("windows", "deadline", "published"): 1,
        ("published_tweets",): 7,
        ("dead_letters",): 2,
        ("publish_seconds",): 0.03,
        ("window_records",): 9,
        ("queue_delay_seconds",): 0.3,
        ("compute_seconds",): 0.5,
        ("predicted_compute_seconds",): 0.4,
        ("window_relative_error",): 0.1,
        ("window_overhead",): 1.5,
        ("publish_reserve_seconds",): 0.02,
        ("tokens", "raw"): 100,
        ("padding_tokens", "raw"): 30,
        ("forward_seconds", "raw"): 0.2,
        ("predicted_forward_seconds", "raw"): 0.25,
        ("cost_coefficient", "raw", "c0"): 1e-3,
        ("cost_coefficient", "raw", "c1"): 2e-5,
        ("cost_coefficient", "raw", "c2"): 3e-8,
        ("cost_relative_error", "raw"): 0.05,
        ("tokens", "predict"): 10,  # and no padding: nothing is added
        ("forward_seconds", "predict"): 0.1,
        ("predicted_forward_seconds", "predict"): 0.11,
        ("cost_coefficient", "predict", "c0"): 4e-3,
        ("cost_coefficient", "predict", "c1"): 5e-5,
        ("cost_coefficient", "predict", "c2"): 6e-8,
        ("cost_relative_error", "predict"): 0.06,
    }


def test_an_abandoned_window_publishes_nothing(record: Any) -> None:
    found = record(WindowReport(7, 2, DISPATCH, compute_s=0.5, publish_s=None, paths={"raw": RAW}))
    assert found["windows", "deadline", "abandoned"] == 1
    assert found["compute_seconds",] == 0.5
    assert not {("published_tweets",), ("dead_letters",), ("publish_seconds",)} & set(found)


def test_the_work_of_a_path() -> None:
    """Five tweets in two passes, a sixth that the pipeline did not see."""
    seen = observed([[0.0, 1.0, 2.0]] * 6, batches=[Batch(3, 8, 0.1), Batch(2, 12, 0.2)])
    seen.input_ids = [[1] * tokens for tokens in (5, 6, 8, 11, 12, 99)]
    seen.batch_of = np.array([0, 0, 0, 1, 1, -1])
    cost = CostModel(np.array([1.0, 0.5, 0.25]), relative_error=0.07)
    assert PathWork.of(seen, cost) == PathWork(
        tokens=5 + 6 + 8 + 11 + 12,
        padded_tokens=3 * 8 + 2 * 12,
        seconds=pytest.approx(0.3),
        predicted_s=pytest.approx(2 * 1.0 + 0.5 * (24 + 24) + 0.25 * (3 * 64 + 2 * 144)),
        coefficients=(1.0, 0.5, 0.25),
        relative_error=0.07,
    )
