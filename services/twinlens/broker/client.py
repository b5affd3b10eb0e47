"""Makes all Kafka clients of twinlens and turns their errors into AskUser."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import (
    AuthorizationError,
    BrokerNotAvailableError,
    GroupAuthorizationFailedError,
    KafkaConfigurationError,
    KafkaConnectionError,
    KafkaError,
    KafkaProtocolError,
    KafkaTimeoutError,
    MetadataEmptyBrokerList,
    RetriableError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
    UnknownBrokerIdError,
    UnsupportedSaslMechanismError,
)

from twinlens.broker.oauth import TokenUnavailableError, token_provider
from twinlens.broker.repairs.connections import Client
from twinlens.broker.repairs.producer import close_producer, outlive_unreachable_coordinators
from twinlens.broker.tls import check_certificates, tls_error
from twinlens.errors import AskUser
from twinlens.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

TRANSIENT: Final = (RetriableError, BrokerNotAvailableError, UnknownBrokerIdError)
"""Errors that pass without help: the same client may try again. The last two occur while brokers start and stop, but
kafka-python does not call them retriable. All other errors (rights, credentials, a corrupt batch) need a person, or at
least a new client."""
BOOTSTRAP_TIMEOUT_MS = 10_000


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """The kafka-python arguments that all clients share: addresses, security, time limits."""
    arguments: dict[str, Any] = {
        "kafka_client": Client,
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "request_timeout_ms": kafka.request_timeout_ms,
        "security_protocol": kafka.security_protocol,
        # With the default of 30 s a client would wait most of a minute after a broker came back.
        "reconnect_backoff_max_ms": 1_000,
    }
    if kafka.security_protocol.startswith("SASL"):
        arguments["sasl_mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = token_provider(kafka)
        elif kafka.sasl_password is not None:
            arguments["sasl_plain_username"] = kafka.sasl_username
            arguments["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    if kafka.security_protocol.endswith("SSL"):
        check_certificates(kafka)
        arguments |= {
            "ssl_cafile": kafka.ssl_cafile,
            "ssl_certfile": kafka.ssl_certfile,
            "ssl_keyfile": kafka.ssl_keyfile,
            "ssl_password": None if kafka.ssl_password is None else kafka.ssl_password.get_secret_value(),
            "ssl_check_hostname": kafka.ssl_check_hostname,
        }
    return arguments


def new_consumer(kafka: KafkaSettings, **arguments: Any) -> KafkaConsumer:
    """A consumer that does not commit automatically and creates no topic. Not thread-safe."""
    with asking_user(kafka):
        return KafkaConsumer(
            **connection(kafka),
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **arguments,
        )


def new_producer(kafka: KafkaSettings, **arguments: Any) -> KafkaProducer:
    """An idempotent producer that creates no topic. It is transactional if `transactional_id` is given."""
    with asking_user(kafka):
        producer = KafkaProducer(
            **connection(kafka),
            allow_auto_create_topics=False,
            metrics_enabled=False,
            max_request_size=kafka.max_request_bytes,
            **arguments,
        )
    outlive_unreachable_coordinators(producer)
    return producer


def new_admin(kafka: KafkaSettings) -> KafkaAdminClient:
    """An admin client."""
    with asking_user(kafka):
        return KafkaAdminClient(**connection(kafka))


@contextmanager
def asking_user(kafka: KafkaSettings, operation: str = "Describe", **names: str) -> Iterator[None]:
    """Turn errors that only a person can fix (address, credentials, rights) into AskUser.

    `operation` and `names` are as in `naming_denials`.
    """
    where = kafka.bootstrap_servers
    try:
        with naming_denials(kafka, operation, **names):
            yield
    except SaslAuthenticationFailedError as error:
        raise AskUser(
            f"Kafka at {where} lets {user(kafka)} not in: {_text(error)}. {_check_credentials(kafka)}"
        ) from None
    except UnsupportedSaslMechanismError:
        raise AskUser(f"Kafka at {where} does not offer {kafka.sasl_mechanism}; set kafka.sasl_mechanism.") from None
    except (KafkaConnectionError, KafkaTimeoutError, KafkaProtocolError, MetadataEmptyBrokerList) as error:
        raise AskUser(_no_connection(error, where)) from None
    except (KafkaConfigurationError, OSError, ValueError) as error:
        raise AskUser(f"The Kafka settings do not work: {error}.") from None


@contextmanager
def naming_denials(
    kafka: KafkaSettings, operation: str, *, group: str = "", transactional_id: str = ""
) -> Iterator[None]:
    """Turn a missing ACL into AskUser with the name of the ACL.

    `operation` is what the block does to topics: Describe, Read, Write or Create. `group` and `transactional_id` are
    those that the block uses.
    """
    try:
        yield
    except TopicAuthorizationFailedError as error:
        raise AskUser(denial(kafka, (operation, "topic", *_topics(error)))) from None
    except GroupAuthorizationFailedError:
        needed = "Describe" if operation == "Describe" else "Read"
        raise AskUser(denial(kafka, (needed, "group", group))) from None
    except TransactionalIdAuthorizationFailedError:
        raise AskUser(denial(kafka, ("Write", "transactional id", transactional_id))) from None
    except AuthorizationError as error:
        raise AskUser(f"{denial(kafka, (operation, 'cluster'))} ({_text(error)})") from None


def denial(kafka: KafkaSettings, *denied: Sequence[str]) -> str:
    """The message about missing ACLs. Each ACL is an operation, a kind of resource and the names of the resources."""
    what = [
        f"{operation} on the {resource}{'s' if len(names) > 1 else ''} {', '.join(names)}".rstrip()
        for operation, resource, *names in denied
    ]
    return f"Kafka denies {user(kafka)} {', and '.join(what)}; grant it (docs/security.md)."


def user(kafka: KafkaSettings) -> str:
    """The name of this user in ACLs, or "this user" if the settings do not have it."""
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_mechanism != "OAUTHBEARER":
        return f"User:{kafka.sasl_username}"
    return "this user"


def _topics(error: TopicAuthorizationFailedError) -> list[str]:
    """The topics that were denied. kafka-python gives a set of names or one text: a name, or a sentence without one."""
    named = error.args[0] if error.args else ""
    topics = sorted(named) if isinstance(named, set | frozenset) else [str(named)]
    return [topic for topic in topics if re.fullmatch(r"[A-Za-z0-9._-]+", topic)] or ["(not named)"]


def _no_connection(error: Exception, where: str) -> str:
    if isinstance(error, TokenUnavailableError):
        return f"There is no token for Kafka at {where}: {_text(error)}. See kafka.sasl_oauth_*."
    tls = tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return f"The certificate of Kafka at {where} is not trusted: {tls.verify_message}. Set kafka.ssl_cafile."
    if tls is not None and "ALERT" in (tls.reason or ""):
        return (
            f"Kafka at {where} refuses the client's certificate, or lacks one ({tls.reason}). "
            "Set kafka.ssl_certfile and kafka.ssl_keyfile."
        )
    return (
        f"No Kafka broker answers at {where} ({_text(error)}). Start it, or set kafka.bootstrap_servers "
        "(TWINLENS_KAFKA__BOOTSTRAP_SERVERS) or kafka.security_protocol."
    )


def _check_credentials(kafka: KafkaSettings) -> str:
    if kafka.sasl_mechanism != "OAUTHBEARER":
        return "Check kafka.sasl_username and kafka.sasl_password (TWINLENS_KAFKA__SASL_PASSWORD)."
    if kafka.sasl_oauth_token_file is not None:
        return "Check kafka.sasl_oauth_token_file."
    return "Check kafka.sasl_oauth_client_id and its secret (TWINLENS_KAFKA__SASL_OAUTH_CLIENT_SECRET)."


def _text(error: Exception) -> str:
    """The error's message, without the class name and error number that kafka-python puts before it."""
    return str(error.args[0]).rstrip(".") if error.args else type(error).__name__


__all__ = [
    "TRANSIENT",
    "KafkaError",
    "asking_user",
    "close_producer",
    "connection",
    "denial",
    "naming_denials",
    "new_admin",
    "new_consumer",
    "new_producer",
]
