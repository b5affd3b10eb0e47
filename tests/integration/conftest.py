"""A broker for the whole run, and topics of its own for every test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from twinlens.broker import topics
from twinlens.broker.embedded import embedded_broker
from twinlens.settings import Settings

_numbers = itertools.count()


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


@pytest.fixture
def new_settings(broker: str) -> Callable[..., Settings]:
    """Settings with topics and a group that no other test uses; the topics exist."""

    def make(*, partitions: int = 2, **sections: dict[str, Any]) -> Settings:
        name = f"tweets{next(_numbers)}"
        kafka = {"bootstrap_servers": broker, "session_timeout_ms": 2000, **sections.pop("kafka", {})}
        settings = Settings.load({"application": name, "kafka": kafka, "topics": {"input": name}, **sections})
        topics.create(settings, partitions, 1)
        return settings

    return make
