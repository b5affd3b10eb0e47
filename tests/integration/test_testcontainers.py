"""The way through Docker: the broker of a container instead of one from `KAFKA_HOME`. Run with `-m testcontainers`."""

from __future__ import annotations

import pytest

from tests.conftest import ModelFolder, docker_answers
from tests.support.replicas import lines, produce, run_through
from twinlens.audit import audit
from twinlens.broker import topics
from twinlens.settings import Settings


@pytest.mark.testcontainers
def test_a_replica_works_on_the_kafka_of_a_container(model_folder: ModelFolder) -> None:
    if not docker_answers():
        pytest.skip("no Docker engine answers")
    from testcontainers.community.kafka import KafkaContainer

    with KafkaContainer("apache/kafka:4.1.0") as container:
        settings = Settings.load(
            {
                "kafka": {"bootstrap_servers": container.get_bootstrap_server(), "session_timeout_ms": 6000},
                "raw": {"model": str(model_folder())},
            }
        )
        topics.create(settings, 2, 1)
        sent = produce(settings, [(None, line, []) for line in lines(200)])
        run_through(settings, sent)
        report = audit(settings)
    assert report.clean
    assert report.published == sent
