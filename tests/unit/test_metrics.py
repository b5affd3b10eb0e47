"""The metrics' names are an interface: the docs hold them all, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from twinlens.metrics import PREFIX, ReplicaMetrics

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


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
