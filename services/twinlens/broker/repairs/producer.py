"""A producer that survives a coordinator that cannot be reached, and that can be closed when it cannot flush.

Two defects of kafka-python 3.0.12, and the test that fails when the repair is no longer needed:

* A transactional request is lost when its coordinator cannot be reached, and its caller waits for ever
  (`outlive_unreachable_coordinators`). Java queues it again (Sender.java, `maybeFindCoordinatorAndRetry`).
  `test_a_request_to_a_coordinator_that_cannot_be_reached_is_forgotten`
* `close` flushes first, raises when that takes too long, and leaves the sender's thread running (`close_producer`).
  Java gives up the records that are left. `test_a_producer_that_cannot_flush_cannot_be_closed`
"""

from __future__ import annotations

from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError

log = structlog.get_logger(__name__)


def outlive_unreachable_coordinators(producer: KafkaProducer) -> None:
    """Let `await_ready` say no where it raises. After an exception the sender forgets the request that it was about to
    send to a coordinator; after a no it tries again.
    """
    client = producer._sender._client
    await_ready = client.await_ready

    def ready(node_id: Any, timeout_ms: float) -> bool:
        try:
            return bool(await_ready(node_id, timeout_ms=timeout_ms))
        except KafkaError as error:
            log.info("broker not reachable", node=node_id, error=repr(error))
            return False

    client.await_ready = ready


def close_producer(producer: KafkaProducer, timeout_s: float) -> None:
    """Close a producer even if it cannot flush: another one will publish what it holds."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        log.warning("producer closed with records in hand", reason=repr(error))
        producer._sender.force_close()
