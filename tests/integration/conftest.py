"""A broker for the whole run, and topics of its own for every test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import ModelFolder
from twinlens.broker import topics
from twinlens.demo.embedded import embedded_broker
from twinlens.settings import Settings

NewSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


@pytest.fixture
def new_settings(broker: str, model_folder: ModelFolder) -> NewSettings:
    """Settings with topics and a group that no other test uses, and with a tiny model; the topics exist."""
    return _maker(broker, str(model_folder()), session_timeout_ms=2000)


@pytest.fixture
def new_kafka_settings(kafka: str, model_folder: ModelFolder) -> NewSettings:
    """The same on a real Kafka, which may outlive the tests."""
    return _maker(kafka, str(model_folder()), session_timeout_ms=6000)


def _maker(address: str, model: str, session_timeout_ms: int) -> NewSettings:
    def make(*, partitions: int = 2, **sections: dict[str, Any]) -> Settings:
        name = f"tweets-{uuid.uuid4().hex[:8]}"
        kafka = {
            "bootstrap_servers": address,
            "session_timeout_ms": session_timeout_ms,
            **sections.pop("kafka", {}),
        }
        sections["raw"] = {"model": model, **sections.get("raw", {})}
        settings = Settings.load({"application": name, "kafka": kafka, "topics": {"input": name}, **sections})
        topics.create(settings, partitions, 1)
        return settings

    return make
