"""What all tests share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.apache_kafka import apache_kafka, kafka_home
from tests.support.secure_kafka import SecureKafka, secure_kafka

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; a wrong name must fail at once
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# No time limit per example: on a busy machine it would fail at random.
settings.register_profile("full", deadline=None)  # `make test-slow` runs all property tests with it
settings.register_profile("quick", deadline=None, max_examples=50)
settings.load_profile("quick")

ModelFolder = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The chaos suite first: it starts and ends a Ray of its own, and a process has one, which other tests keep."""
    items.sort(key=lambda item: item.get_closest_marker("chaos") is None)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """`model_folder(family, head)`: folder of a tiny model, built on first use; see `tests.support.models`."""
    import torch
    from transformers.utils import logging

    from tests.support.models import build_model

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    built: dict[tuple[str, str, int], Path] = {}

    def folder(family: str = "bert", head: str = "three", seed: int = 0) -> Path:
        key = (family, head, seed)
        if key not in built:
            built[key] = build_model(tmp_path_factory.mktemp("model") / f"{family}-{head}", family, head, seed)
        return built[key]

    return folder


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """A real Apache Kafka: `TWINLENS_TEST_BOOTSTRAP`, else one from `KAFKA_HOME`, else Docker through testcontainers.

    Where there is none the test is skipped, or fails under `TWINLENS_REQUIRE_KAFKA=1`.
    """
    if address := os.environ.get("TWINLENS_TEST_BOOTSTRAP"):
        yield address
    elif home := kafka_home():
        with apache_kafka(home) as cluster:
            yield cluster.bootstrap()
    elif docker_answers():
        from testcontainers.community.kafka import KafkaContainer

        with KafkaContainer("apache/kafka:4.1.0") as container:
            yield container.get_bootstrap_server()
    else:
        _do_without("no Kafka: neither TWINLENS_TEST_BOOTSTRAP, nor KAFKA_HOME with java, nor Docker")


@pytest.fixture(scope="session")
def secure() -> Iterator[SecureKafka]:
    """A real Kafka with users, certificates and ACLs. It is always our own, from `KAFKA_HOME`."""
    if home := kafka_home():
        with secure_kafka(home) as found:
            yield found
    else:
        _do_without("no Kafka of our own: no KAFKA_HOME with java")


def _do_without(reason: str) -> None:
    if os.environ.get("TWINLENS_REQUIRE_KAFKA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def docker_answers() -> bool:
    """Whether a Docker engine listens. Asked without its client, which leaves a socket open where none does."""
    if os.environ.get("DOCKER_HOST"):
        return True
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect("/var/run/docker.sock")
    except OSError:
        return False
    return True
