"""How every Kafka client of twinlens is made, and what its errors ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import (
    AuthorizationError,
    BrokerNotAvailableError,
    KafkaConfigurationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MetadataEmptyBrokerList,
    RetriableError,
    SaslAuthenticationFailedError,
    UnknownBrokerIdError,
    UnsupportedSaslMechanismError,
)

from twinlens.errors import AskUser
from twinlens.settings import KafkaSettings

log = structlog.get_logger(__name__)

TRANSIENT: Final = (RetriableError, BrokerNotAvailableError, UnknownBrokerIdError)
"""What passes by itself: the same client may try again. The last two come while brokers come and go, though
kafka-python does not call them retriable. All other errors (rights, credentials, a corrupt batch) need somebody, or at
least another client."""
BOOTSTRAP_TIMEOUT_MS = 10_000


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """kafka-python arguments that every client shares: addresses, security, time limits."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "request_timeout_ms": kafka.request_timeout_ms,
        "security_protocol": kafka.security_protocol,
        # The default of 30 s would make a client sit out most of a minute after a broker came back.
        "reconnect_backoff_max_ms": 1_000,
    }
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_password is not None:
        arguments |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    if kafka.security_protocol.endswith("SSL"):
        arguments |= {
            "ssl_cafile": kafka.ssl_cafile,
            "ssl_certfile": kafka.ssl_certfile,
            "ssl_keyfile": kafka.ssl_keyfile,
            "ssl_password": None if kafka.ssl_password is None else kafka.ssl_password.get_secret_value(),
            "ssl_check_hostname": kafka.ssl_check_hostname,
        }
    return arguments


def new_consumer(kafka: KafkaSettings, **arguments: Any) -> KafkaConsumer:
    """A consumer that never commits by itself and creates no topic. Not thread-safe."""
    with asking_user(kafka):
        return KafkaConsumer(
            **connection(kafka),
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **arguments,
        )


def new_producer(kafka: KafkaSettings, **arguments: Any) -> KafkaProducer:
    """An idempotent producer (transactional with `transactional_id`) that creates no topic."""
    with asking_user(kafka):
        producer = KafkaProducer(
            **connection(kafka),
            allow_auto_create_topics=False,
            metrics_enabled=False,
            max_request_size=kafka.max_request_bytes,
            **arguments,
        )
    _outlive_unreachable_coordinators(producer)
    return producer


def _outlive_unreachable_coordinators(producer: KafkaProducer) -> None:
    """Let `await_ready` say no where it raises. After an exception kafka-python 3.0.12 forgets the request that it was
    about to send to a coordinator, and whoever waits for the answer waits for ever; after a no it tries again.
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
    """Close also a producer that cannot flush any more: what it holds will be published by another one."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        log.warning("producer closed with records in hand", reason=repr(error))
        producer._sender.force_close()


def new_admin(kafka: KafkaSettings) -> KafkaAdminClient:
    """An admin client."""
    with asking_user(kafka):
        return KafkaAdminClient(**connection(kafka))


@contextmanager
def asking_user(kafka: KafkaSettings) -> Iterator[None]:
    """Turn what only a person can mend (address, credentials, rights) into AskUser."""
    where = kafka.bootstrap_servers
    try:
        yield
    except (SaslAuthenticationFailedError, UnsupportedSaslMechanismError) as error:
        raise AskUser(
            f"Kafka at {where} refused the credentials ({type(error).__name__}). Check kafka.sasl_*."
        ) from None
    except AuthorizationError as error:
        raise AskUser(
            f"Kafka at {where} denies this user what twinlens needs: {error}. See docs/settings.md."
        ) from None
    except (KafkaConnectionError, KafkaTimeoutError, MetadataEmptyBrokerList) as error:
        raise AskUser(
            f"No Kafka broker answers at {where} ({type(error).__name__}). "
            "Start it, or set kafka.bootstrap_servers (TWINLENS_KAFKA__BOOTSTRAP_SERVERS)."
        ) from None
    except (KafkaConfigurationError, OSError, ValueError) as error:
        raise AskUser(f"The Kafka settings do not work: {error}.") from None


__all__ = [
    "TRANSIENT",
    "KafkaError",
    "asking_user",
    "close_producer",
    "connection",
    "new_admin",
    "new_consumer",
    "new_producer",
]
